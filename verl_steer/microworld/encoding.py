"""Dialogues and pictures as the warm-up feeds them to the model: the tokens and positions a rollout will see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verl_steer.microworld.exercises import Example
from verl_steer.microworld.lexicon import SEALS, SHAPES
from verl_steer.microworld.picture import Scene, render
from verl_steer.microworld.student import MERGE, PATCH

IMAGE_AT, SIDE = 4, 3  # index of the first image token in a dialogue; image tokens a side


@dataclass(frozen=True)
class Encoded:
    """A dialogue as tokens.

    Attributes:
        ids: int64 [L].
        mask: float32 [L], 1 on what the student wrote and its end token.
        reads: bool [L], true where it wrote the seal of an object that can be seen clearly, or the name of what "the
            other one" is.
        decides: int64 [L], where it wrote "say", "again" or "no" after an object's name: the index in `RULES` of the
            rule that forbids what was asked; elsewhere, and if the object cannot be seen clearly, -1.
        scene: The picture.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    reads: torch.Tensor
    decides: torch.Tensor
    scene: Scene


RULES = ("", "R1", "R2", "R3")  # nothing forbids; what `rules.State.forbids` returns


class Encoder:
    """Example -> tokens, through the chat template, as the rollout will see them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.start = tokenizer("<|im_start|>assistant\n")["input_ids"]
        self.end = tokenizer.eos_token_id
        self.seals = {word_id(tokenizer, seal) for seal in SEALS}
        self.verbs = {word_id(tokenizer, verb) for verb in ("say", "again", "no")}
        self.shapes = {word_id(tokenizer, shape): shape for shape in SHAPES}

    def __call__(self, example: Example) -> Encoded:
        messages: list[dict[str, Any]] = []
        for t, (question, reply) in enumerate(example.turns):
            image = [{"type": "image"}] if t == 0 else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": reply})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = self.tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * SIDE * SIDE))["input_ids"]
        mask, turn_of = self._replies(ids)
        clear = {thing.shape for thing in example.scene.things if not thing.faint}
        reads, decides = torch.zeros(len(ids), dtype=torch.bool), torch.full((len(ids),), -1)
        referring = {n for n, (question, _) in enumerate(example.turns) if "other one" in question}
        for i in range(1, len(ids)):
            if mask[i] and ids[i] in self.shapes and turn_of[i] in referring:
                reads[i] = True
                referring.remove(turn_of[i])  # named again, it is copied
            if mask[i] and self.shapes.get(ids[i - 1]) in clear:
                reads[i] = ids[i] in self.seals
                if ids[i] in self.verbs:
                    decides[i] = RULES.index(example.taboos[turn_of[i]])
        return Encoded(torch.tensor(ids), torch.tensor(mask), reads, decides, example.scene)

    def _replies(self, ids: list[int]) -> tuple[list[float], list[int]]:
        """For each token, 1.0 if the student wrote it; and the turn it belongs to."""
        mask, turn_of, turn = [0.0] * len(ids), [0] * len(ids), -1
        inside = False
        for i in range(len(ids)):
            if inside:
                mask[i], turn_of[i] = 1.0, turn
                inside = ids[i] != self.end
            elif ids[max(0, i + 1 - len(self.start)) : i + 1] == self.start:
                inside, turn = True, turn + 1
        return mask, turn_of


def pixels(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the image processor makes of the pictures, vectorised.

    Returns:
        pixel_values: float32 [len * 36, 3 * 2 * 14 * 14]; image_grid_thw: int64 [len, 3].
    """
    images = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes]))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = ((images / 255 - mean) / std).permute(0, 3, 1, 2)  # [B, C, H, W]
    n, side = len(scenes), SIDE
    x = x.reshape(n, 3, side, MERGE, PATCH, side, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.reshape(n * side * side * MERGE * MERGE, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1)
    grid = torch.tensor([[1, side * MERGE, side * MERGE]]).expand(n, -1)
    return x.reshape(len(x), -1).contiguous(), grid.contiguous()


def positions(length: int) -> torch.Tensor:
    """M-RoPE positions of a dialogue whose picture stands first: int64 [3, length]."""
    after = length - IMAGE_AT - SIDE * SIDE
    head = torch.arange(IMAGE_AT).expand(3, -1)
    cell = torch.arange(SIDE * SIDE)
    image = IMAGE_AT + torch.stack([torch.zeros_like(cell), cell // SIDE, cell % SIDE])
    tail = (IMAGE_AT + SIDE + torch.arange(max(0, after))).expand(3, -1)
    return torch.cat([head, image, tail], dim=1)[:, :length]


class Eyes:
    """The trained vision tower, frozen: each picture is looked at once."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.seen: dict[Scene, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Image tokens: float32 [len(scenes), 9, hidden]."""
        new = list({scene for scene in scenes if scene not in self.seen})
        if new:
            values, grid = pixels(new)
            tokens = self.visual(values, grid_thw=grid).pooler_output
            self.seen.update(zip(new, tokens.reshape(len(new), SIDE * SIDE, -1), strict=True))
        return torch.stack([self.seen[scene] for scene in scenes])


def word_id(tokenizer: Any, word: str) -> int:
    """The one token of a word of the world, as it stands within a text."""
    ids = tokenizer(f" {word}")["input_ids"]
    assert len(ids) == 1, f"{word!r} is not one token of the world's vocabulary"
    return int(ids[0])
