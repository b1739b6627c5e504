"""One request of the rollout server: its tokens, its pictures, its random stream, its reply so far."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from verl_steer.plugin.cpu.sampling import SamplingSettings


@dataclass
class Reply:
    """What the model wrote.

    Attributes:
        token_ids: The ending token included, if one was reached.
        log_probs: Of each token.
        finish: "stop", "length" or "abort".
    """

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish: str = ""


@dataclass
class Prompt:
    """A tokenised prompt whose pictures are prepared for the vision tower.

    Attributes:
        token_ids: With each picture's placeholder repeated once per vision token.
        positions: (3, length) int64 M-RoPE positions, or (1, length) for a model without them.
        pixel_values: (patches, patch size) float of all pictures, or None.
        grids: (pictures, 3) int64: temporal, height, width in patches.
        spans: Where each picture's placeholders stand in `token_ids`.
        key: One hashable item a token, equal only for tokens that see equal input: a picture's tokens
            carry its digest. Two prompts that share a prefix of keys share the cache of that prefix.
    """

    token_ids: list[int]
    positions: torch.Tensor
    pixel_values: torch.Tensor | None
    grids: torch.Tensor | None
    spans: list[slice]
    key: list[Any]

    def pictures(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """(placeholders, patches, grid) of each picture."""
        if self.pixel_values is None or self.grids is None:
            return
        patches = torch.split(self.pixel_values, self.grids.prod(dim=-1).tolist())
        yield from zip(self.spans, patches, self.grids, strict=True)

    @property
    def next_position(self) -> int:
        """Position of the first token of the reply, on every axis."""
        return int(self.positions.max()) + 1


@dataclass
class Request:
    """A prompt that waits for its reply."""

    prompt: Prompt
    settings: SamplingSettings
    generator: torch.Generator
    reply: Reply = field(default_factory=Reply)

    @classmethod
    def make(cls, prompt: Prompt, settings: SamplingSettings) -> Request:
        """With the random stream of `settings.seed`."""
        generator = torch.Generator()
        generator.manual_seed(settings.seed)
        return cls(prompt, settings, generator)

    def append(self, token: int, log_prob: float) -> None:
        """Adds a token and notes whether it ends the reply."""
        self.reply.token_ids.append(token)
        self.reply.log_probs.append(log_prob)
        if token in self.settings.stop_ids:
            self.reply.finish = "stop"
        elif len(self.reply.token_ids) >= self.settings.max_tokens:
            self.reply.finish = "length"


class PromptBuilder:
    """Prepares prompts for one model: pictures, positions, keys.

    Args:
        model: A Qwen2-VL-like model with `get_rope_index`, or a text model.
        processor: Its processor, or None for a text model.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._backbone = model.model
        self._processor = processor
        self._image_id = getattr(model.config, "image_token_id", None)

    def build(self, token_ids: Sequence[int], images: Sequence[Any]) -> Prompt:
        """Args:
            token_ids: Placeholders expanded, as verl's agent loops send them.
            images: PIL images in the order of their placeholders.

        Raises:
            ValueError: The prompt is empty, or its placeholders do not fit the images.
        """
        ids = [int(t) for t in token_ids]
        if not ids:
            raise ValueError("prompt_ids is empty")
        pixel_values = grids = None
        key: list[Any] = list(ids)
        if images:
            if self._processor is None or self._image_id is None:
                raise ValueError(f"{len(images)} images were sent to a model that has no vision tower")
            features = self._processor.image_processor(images=list(images), return_tensors="pt")
            pixel_values, grids = features["pixel_values"], features["image_grid_thw"]
        spans = self._spans(ids, grids)
        for span, image in zip(spans, images, strict=True):
            digest = hashlib.sha256(image.tobytes() + repr((image.size, image.mode)).encode()).hexdigest()
            key[span] = [digest] * (span.stop - span.start)
        return Prompt(ids, self._positions(ids, grids), pixel_values, grids, spans, key)

    def _spans(self, ids: list[int], grids: torch.Tensor | None) -> list[slice]:
        """Where each picture's placeholders stand."""
        where = [i for i, t in enumerate(ids) if t == self._image_id] if self._image_id is not None else []
        merge = self._processor.image_processor.merge_size**2 if grids is not None else 1
        sizes = [] if grids is None else [int(g.prod()) // merge for g in grids]
        if len(where) != sum(sizes):
            raise ValueError(
                f"the prompt holds {len(where)} image placeholders, its {len(sizes)} images need {sum(sizes)} ({sizes})"
            )
        spans, at = [], 0
        for number, size in enumerate(sizes):
            first, last = where[at], where[at + size - 1]
            if last - first != size - 1:
                raise ValueError(f"the placeholders of image {number} are not contiguous: it needs {size} in a row")
            spans.append(slice(first, last + 1))
            at += size
        return spans

    def _positions(self, ids: list[int], grids: torch.Tensor | None) -> torch.Tensor:
        if not hasattr(self._backbone, "get_rope_index"):
            return torch.arange(len(ids)).unsqueeze(0)
        if grids is None:
            return torch.arange(len(ids)).expand(3, -1)
        tokens = torch.tensor([ids])
        positions, _ = self._backbone.get_rope_index(
            input_ids=tokens, mm_token_type_ids=(tokens == self._image_id).int(), image_grid_thw=grids
        )
        return positions[:, 0]
