"""Continuous batching over a transformers model on the CPU.

`model.generate` serves one batch from start to end: with a dialogue's turns arriving at their own
pace that means either batches of one or waiting for the slowest. Here a request joins between two
decoding steps and leaves when it is done. A dialogue's next turn begins with the tokens of its last
one, whose keys and values are still in a slot: only what is new is computed, and a picture goes
through the vision tower once a dialogue.

What a request samples does not depend on its neighbours: its random stream is its own, and rows of a
batch only share matrix products (differences of about 1e-7 in a probability).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from verl_steer.plugin.cpu.kv_slots import SlotCache
from verl_steer.plugin.cpu.request import Request
from verl_steer.plugin.cpu.sampling import choose_tokens

#: New tokens of one prefill pass, padding included: bounds the memory of its activations.
PREFILL_TOKENS = 8192


class _Slot:
    """Place of one sequence in the cache, and what it holds."""

    def __init__(self) -> None:
        self.key: list[Any] = []
        self.request: Request | None = None
        self.next_position = 0
        self.used = 0  # tick of the last use, for eviction


class BatchEngine:
    """Decodes many requests at once; not thread-safe: one thread owns it.

    Args:
        model: A transformers model for causal language or image-text generation, in eval mode.
        never: Token ids that are never sampled (they stay in the reported distribution).
        slots: Sequences held at once: those being decoded and those kept for their prefix.
    """

    def __init__(self, model: Any, never: Sequence[int], slots: int) -> None:
        self._model = model
        self._decoder = getattr(model.model, "language_model", model.model)
        self._never = torch.zeros(model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
        self._never[list(never)] = True
        self._slots = [_Slot() for _ in range(slots)]
        self._cache = SlotCache()
        self._tick = 0
        self.computed_tokens = 0

    @property
    def free(self) -> int:
        """Requests that can be admitted now."""
        return sum(slot.request is None for slot in self._slots)

    @property
    def active(self) -> list[Request]:
        """Requests being decoded."""
        return [slot.request for slot in self._slots if slot.request is not None]

    def drop_cache(self) -> None:
        """Forgets every kept prefix: the weights have changed. Only without active requests.

        Raises:
            RuntimeError: A request is being decoded.
        """
        if self.active:
            raise RuntimeError(f"{len(self.active)} requests are being decoded; abort them before dropping the cache")
        for slot in self._slots:
            slot.key = []
        self._cache.drop()

    def abort(self) -> list[Request]:
        """Ends every active request where it stands and returns them."""
        aborted = []
        for slot in self._slots:
            if slot.request is not None:
                slot.request.reply.finish = "abort"
                aborted.append(slot.request)
                slot.request = None
        return aborted

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> list[Request]:
        """Computes the prompts of new requests and samples their first tokens.

        Args:
            requests: At most `free` of them.

        Returns:
            Those that are finished already.
        """
        placed = sorted(((self._place(request), request) for request in requests), key=self._new_tokens)
        finished = []
        for group in _groups([self._new_tokens(p) for p in placed]):
            finished += self._prefill([placed[i][0] for i in group])
        return finished

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One token for every active request; returns the finished ones."""
        slots = [slot for slot in self._slots if slot.request is not None]
        if not slots:
            return []
        last = [[_request(slot).reply.token_ids[-1]] for slot in slots]
        axes = _request(slots[0]).prompt.positions.shape[0]
        positions = torch.tensor([[slot.next_position] for slot in slots]).expand(axes, -1, -1)
        embeds = self._model.get_input_embeddings()(torch.tensor(last))
        starts = [len(slot.key) for slot in slots]
        for slot, tokens in zip(slots, last, strict=True):
            slot.key.extend(tokens)
            slot.next_position += 1
        return self._forward(slots, embeds, positions, starts, [1] * len(slots))

    def _new_tokens(self, placed: tuple[_Slot, Request]) -> int:
        return len(placed[1].prompt.token_ids) - len(placed[0].key)

    def _place(self, request: Request) -> _Slot:
        """The free slot with the longest common prefix, else the one unused for longest."""
        self._tick += 1
        free = [slot for slot in self._slots if slot.request is None]
        if not free:
            raise RuntimeError("no slot is free; admit at most `free` requests")
        shared = {id(slot): _common_prefix(slot.key, request.prompt) for slot in free}
        slot = max(free, key=lambda s: (shared[id(s)], -s.used))
        # The last prompt token is always computed: its output is the first token's distribution.
        slot.key = slot.key[: shared[id(slot)]]
        slot.request, slot.used = request, self._tick
        return slot

    def _prefill(self, slots: list[_Slot]) -> list[Request]:
        starts = [len(slot.key) for slot in slots]
        prompts = [_request(slot).prompt for slot in slots]
        lengths = [len(p.token_ids) - start for p, start in zip(prompts, starts, strict=True)]
        width, axes = max(lengths), prompts[0].positions.shape[0]
        ids = torch.zeros(len(slots), width, dtype=torch.long)
        positions = torch.zeros(axes, len(slots), width, dtype=torch.long)
        for row, (prompt, start, length) in enumerate(zip(prompts, starts, lengths, strict=True)):
            ids[row, :length] = torch.tensor(prompt.token_ids[start:])
            positions[:, row, :length] = prompt.positions[:, start:]
        embeds = self._model.get_input_embeddings()(ids)
        deep = self._put_pictures(embeds, slots, starts)
        for slot, prompt in zip(slots, prompts, strict=True):
            slot.key, slot.next_position = list(prompt.key), prompt.next_position
        return self._forward(slots, embeds, positions, starts, lengths, deep)

    def _put_pictures(self, embeds: torch.Tensor, slots: list[_Slot], starts: list[int]) -> dict[str, Any]:
        """Writes the vision tower's output over the placeholders that are not in the cache yet.

        Returns:
            What else the text model takes of them: Qwen3-VL adds features of earlier vision layers to the hidden
            states of its first layers (DeepStack, arXiv 2406.04334); empty for other families.
        """
        pixels, grids, targets = [], [], []
        for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
            for span, patches, grid in _request(slot).prompt.pictures():
                if span.start >= start:
                    pixels.append(patches)
                    grids.append(grid)
                    targets.append((row, slice(span.start - start, span.stop - start)))
        if not pixels:
            return {}
        vision = self._model.model.get_image_features(torch.cat(pixels), torch.stack(grids))
        shown = torch.zeros(embeds.shape[:2], dtype=torch.bool)
        for (row, span), features in zip(targets, vision.pooler_output, strict=True):
            embeds[row, span] = features.to(embeds.dtype)
            shown[row, span] = True
        # Pictures were taken row by row and from left to right, the order in which a mask picks its elements.
        deep = getattr(vision, "deepstack_features", None)
        return {} if deep is None else {"visual_pos_masks": shown, "deepstack_visual_embeds": deep}

    def _forward(
        self,
        slots: list[_Slot],
        embeds: torch.Tensor,
        positions: torch.Tensor,
        starts: list[int],
        lengths: list[int],
        deep: dict[str, Any] | None = None,
    ) -> list[Request]:
        """Runs the text model on the rows' new tokens and gives every row its next token."""
        rows, new, _ = embeds.shape
        numbers = [self._slots.index(slot) for slot in slots]
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        keys = max(ends)
        # A short row's padding would be written beyond `keys`; the cache holds it, nobody reads it.
        self._cache.select(numbers, starts, keys, max(numbers) + 1)
        at = torch.tensor(starts).unsqueeze(-1) + torch.arange(new)
        visible = torch.arange(keys).view(1, 1, -1) <= at.unsqueeze(-1)
        bias = torch.zeros(rows, 1, new, keys, dtype=embeds.dtype).masked_fill_(
            ~visible.unsqueeze(1), torch.finfo(embeds.dtype).min
        )
        hidden = self._decoder(
            inputs_embeds=embeds,
            attention_mask=bias,
            position_ids=positions if positions.shape[0] > 1 else positions[0],
            past_key_values=self._cache,
            use_cache=True,
            **(deep or {}),
        ).last_hidden_state
        self.computed_tokens += sum(lengths)
        last = hidden[torch.arange(rows), torch.tensor(lengths) - 1]
        return self._sample(slots, self._model.get_output_embeddings()(last))

    def _sample(self, slots: list[_Slot], logits: torch.Tensor) -> list[Request]:
        requests = [_request(slot) for slot in slots]
        tokens, log_probs = choose_tokens(
            logits, [r.settings for r in requests], [r.generator for r in requests], self._never
        )
        finished = []
        for slot, request, token, log_prob in zip(slots, requests, tokens, log_probs, strict=True):
            request.append(token, log_prob)
            if request.reply.finish:
                slot.request = None
                finished.append(request)
        return finished


def _request(slot: _Slot) -> Request:
    assert slot.request is not None, "a slot without a request takes no part in a forward pass"
    return slot.request


def _common_prefix(held: list[Any], prompt: Any) -> int:
    """Tokens of the prompt that a slot holds already; never all of them, never a part of a picture."""
    limit = min(len(held), len(prompt.key) - 1)
    shared = 0
    while shared < limit and held[shared] == prompt.key[shared]:
        shared += 1
    return next((span.start for span, _, _ in prompt.pictures() if span.start < shared < span.stop), shared)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Splits rows, sorted by length, into passes of bounded size and bounded padding."""
    groups: list[list[int]] = []
    for row, length in enumerate(lengths):
        group = groups[-1] if groups else []
        fits = group and length * (len(group) + 1) <= PREFILL_TOKENS and length <= 2 * lengths[group[0]] + 32
        if fits:
            group.append(row)
        else:
            groups.append([row])
    return groups
