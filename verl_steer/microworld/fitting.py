"""How the warm-up fits: what a batch is worth to the student, optimizers, schedule, batches. A plain torch loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from verl_steer.microworld.encoding import RULES, Encoded, Eyes, positions, word_id

FALL_STEPS = 180
# The eyes learned to look like the words' embeddings; let those drift at the matrices' pace, and for some
# shapes the question no longer finds its object: such a student reads the other object's seal.
EMBEDDING_PACE, GAIN_PACE = 0.03, 0.15  # learning rates of embeddings and of norms and biases, of Muon's
# Weight of a token that has to be looked up, in the picture or in the dialogue: a tenth of all tokens, and
# what everything else turns on.
EMPHASIS = 3.0


@dataclass(frozen=True)
class Imitation:
    """How well the model imitates a batch.

    Attributes:
        loss: Scalar; mean negative log-likelihood over the student's tokens, looked-up ones `EMPHASIS` times.
        reads: bool [n]; for each clear seal, whether the model's first choice is right.
        recalls: bool [m]; likewise for each "say" or "again" where nothing is forbidden.
        refusals: For each rule, float32 [k]: the probability of "no" where the rule forbids what was asked.
    """

    loss: torch.Tensor
    reads: torch.Tensor
    recalls: torch.Tensor
    refusals: dict[str, torch.Tensor]


class Imitator:
    """Scores batches of dialogues under a model.

    Args:
        model: The student.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._eyes = Eyes(model.model.visual)
        self._no = word_id(tokenizer, "no")

    def __call__(self, batch: Sequence[Encoded]) -> Imitation:
        """See `Imitation`; differentiable in the loss."""
        model = self._model
        length = max(len(e.ids) for e in batch)
        ids = torch.full((len(batch), length), model.config.text_config.pad_token_id)
        wanted = torch.zeros(len(batch), length, dtype=torch.bool)
        reads, decides = wanted.clone(), torch.full_like(ids, -1)
        for row, e in enumerate(batch):
            n = len(e.ids)
            ids[row, :n], wanted[row, :n], reads[row, :n], decides[row, :n] = e.ids, e.mask > 0, e.reads, e.decides
        embedded = model.get_input_embeddings()(ids)
        seen = self._eyes([e.scene for e in batch]).reshape(-1, embedded.shape[-1])
        embedded = embedded.masked_scatter((ids == model.config.image_token_id)[..., None], seen)
        # Padding stands right of everything, so the causal mask alone keeps it out.
        position = positions(length)[:, None].expand(3, len(batch), length)
        hidden = model.model.language_model(
            inputs_embeds=embedded, position_ids=position, use_cache=False
        ).last_hidden_state
        wanted = wanted[:, 1:]
        target, reads, decides = ids[:, 1:][wanted], reads[:, 1:][wanted], decides[:, 1:][wanted]
        logits = model.lm_head(hidden[:, :-1][wanted])
        losses = nn.functional.cross_entropy(logits, target, reduction="none")
        weight = torch.where(reads | (decides >= 0), EMPHASIS, 1.0)
        logits = logits.detach()
        right = logits.argmax(-1) == target
        refuses = logits.softmax(-1)[:, self._no]
        refusals = {rule: refuses[decides == k] for k, rule in enumerate(RULES) if rule}
        return Imitation((losses * weight).mean(), right[reads], right[decides == 0], refusals)


def optimizers_of(model: Any, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the language model, at `lr`; AdamW on the rest, slower.

    Muon, because the circuit that looks an object up in the picture forms in a third of AdamW's steps.
    """
    named = list(model.model.language_model.named_parameters())  # lm_head is the embedding
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    embeddings = [p for name, p in named if "embed" in name]
    gains = [p for _, p in named if p.ndim != 2]
    slow = [{"params": embeddings, "lr": EMBEDDING_PACE * lr}, {"params": gains, "lr": GAIN_PACE * lr}]
    return [
        torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(slow, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def schedule(
    optimizers: Sequence[torch.optim.Optimizer], steps: int, settled: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Yields 1, 2, ..., at most `steps`; learning rates rise briefly, stay, and fall linearly at the end.

    The fall takes two fifths of `steps`, but no more than `FALL_STEPS`; it begins in time to end at `steps`,
    or as soon as `settled()`.
    """
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    fall = min(FALL_STEPS, max(1, int(0.4 * steps)))
    last = steps
    for step in range(1, steps + 1):
        if step > last:
            return
        if last == steps and step + fall < steps and settled():
            last = step + fall
        factor = min(1.0, step / max(1, min(fall, steps // 20)), (last + 1 - step) / fall)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = lr * factor
        yield step


def step_all(loss: torch.Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()


def endless_batches(rng: random.Random, pool: list[Encoded], tokens: int) -> Iterator[list[Encoded]]:
    """Endless batches of about `tokens` tokens, each of dialogues alike in length: little padding."""
    while True:
        groups: list[list[Encoded]] = [[]]
        for encoded in sorted(rng.sample(pool, len(pool)), key=lambda e: len(e.ids) // 8):
            if groups[-1] and (len(groups[-1]) + 1) * len(encoded.ids) > tokens:
                groups.append([])
            groups[-1].append(encoded)
        rng.shuffle(groups)
        yield from groups
