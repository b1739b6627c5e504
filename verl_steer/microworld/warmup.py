"""Warms the student up: eyes, then language, then a first manner. A plain torch loop.

Three short stages, because a tiny model that must find out everything from next-token loss spends
most of its time blind: first the vision tower alone learns to tell shapes, colours and seals
(through heads that are thrown away), then the whole model does exercises, then exercises, lessons
and habits together. Seeded; two threads; a progress bar.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from verl_steer.microworld.exercises import Example, exercise, habits, lessons, random_scene
from verl_steer.microworld.lexicon import COLOURS, SEALS, SHAPES, stable
from verl_steer.microworld.picture import Scene, render
from verl_steer.microworld.sizes import WarmupConfig
from verl_steer.microworld.student import MERGE, PATCH, build_model, build_processor

IMAGE_AT, SIDE = 4, 3  # index of the first image token in a dialogue; image tokens a side
OBJECT_TOKENS = [3, 5]  # of the nine: middle row, left and right
GATE_WINDOW = 60  # steps over which the loss is averaged before it is believed
FALL_STEPS = 180
SHARPNESS = 20.0  # inverse temperature of the likeness between an image token and words


Progress = Callable[[str, int, int, float], None]


def warm(seed: int, config: WarmupConfig | None = None, progress: Progress | None = None) -> tuple[Any, Any]:
    """Trains a student from random weights.

    Args:
        seed: Of weights, data and order.
        progress: Called after every step with (stage, step, steps, loss).

    Returns:
        (model, processor), ready for `student.save`.
    """
    config = config or WarmupConfig()
    report = progress or (lambda *_: None)
    processor = build_processor()
    model = build_model(seed, processor.tokenizer)
    rng = stable(seed, "warm-up")
    torch.manual_seed(seed)
    model.train()
    _train_eyes(model, processor.tokenizer, config, rng, report)
    encoder = Encoder(processor.tokenizer)
    pool = [encoder(exercise(rng)) for _ in range(config.exercises)]
    eyes = Eyes(model.model.visual)
    batches = _batches(rng, pool, config.batch_tokens)
    _train(model, eyes, config.base_steps, config.lr, batches, report, "language", config.gate_loss)
    scripted = [encoder(e) for e in lessons(seed, config.lesson_pairs)]
    habitual = [encoder(e) for e in habits(rng, seed, config.lesson_pairs)]
    mixed = _mixed(rng, pool, scripted, habitual, config)
    _train(model, eyes, config.manner_steps, config.manner_lr, mixed, report, "manner")
    return model.eval(), processor


@dataclass(frozen=True)
class Encoded:
    """A dialogue as tokens. ids: int64 [L]; mask: float32 [L], 1 on what the student wrote and its end token."""

    ids: torch.Tensor
    mask: torch.Tensor
    scene: Scene


class Encoder:
    """Example -> tokens, through the chat template, as the rollout will see them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.start = tokenizer("<|im_start|>assistant\n")["input_ids"]
        self.end = tokenizer.eos_token_id

    def __call__(self, example: Example) -> Encoded:
        messages: list[dict[str, Any]] = []
        for t, (question, reply) in enumerate(example.turns):
            image = [{"type": "image"}] if t == 0 else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": question}]})
            messages.append({"role": "assistant", "content": reply})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = self.tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * SIDE * SIDE))["input_ids"]
        mask, inside = [0.0] * len(ids), False
        for i in range(len(ids)):
            if inside:
                mask[i] = 1.0
                inside = ids[i] != self.end
            elif ids[max(0, i + 1 - len(self.start)) : i + 1] == self.start:
                inside = True
        return Encoded(torch.tensor(ids), torch.tensor(mask), example.scene)


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


def _train_eyes(model: Any, vocabulary: Any, config: WarmupConfig, rng: random.Random, report: Progress) -> None:
    """The vision tower alone: the token in the middle of an object learns to look like its words.

    What it is scored by is its likeness to the embeddings of the object's shape, colour, seal and
    side. So everything about an object lies in one place, in a form that a question naming its
    shape already matches; without this the language stage takes several times as long to look.
    """
    scenes = [random_scene(rng) for _ in range(config.pictures)]
    values, grid = pixels(scenes)
    values = values.reshape(len(scenes), -1, values.shape[-1])
    truth = torch.tensor([_facts(scene) for scene in scenes])  # [scenes, 2 objects, 4 facts]
    names = (SHAPES, COLOURS, SEALS, ("left", "right"))
    words = [torch.tensor([_token(vocabulary, word) for word in group]) for group in names]
    embed = model.get_input_embeddings().weight.detach()
    embed = nn.functional.normalize(embed, dim=-1)
    visual = model.model.visual
    optimizers = [torch.optim.AdamW(visual.parameters(), lr=config.vision_lr, weight_decay=0.01, betas=(0.9, 0.98))]
    for step in _schedule(optimizers, config.vision_steps):
        pick = torch.tensor(rng.sample(range(len(scenes)), min(config.vision_batch, len(scenes))))
        seen = visual(values[pick].flatten(0, 1), grid_thw=grid[pick]).pooler_output
        seen = seen.reshape(len(pick), SIDE * SIDE, -1)[:, OBJECT_TOKENS].flatten(0, 1)
        size = seen.norm(dim=-1)
        seen = SHARPNESS * nn.functional.normalize(seen, dim=-1)
        told = truth[pick].flatten(0, 1)
        losses = [nn.functional.cross_entropy(seen @ embed[ids].T, told[:, k]) for k, ids in enumerate(words)]
        # As long as a word's embedding: an image token that dwarfs its neighbours hardly changes in the layers above.
        loss = torch.stack(losses).mean() + 0.1 * (size.log() ** 2).mean()
        _step(loss, optimizers)
        report("eyes", step, config.vision_steps, loss.item())


def _token(vocabulary: Any, word: str) -> int:
    ids = vocabulary(f" {word}")["input_ids"]
    assert len(ids) == 1, f"{word!r} is not one token of the world's vocabulary"
    return int(ids[0])


def _facts(scene: Scene) -> list[list[int]]:
    """Indices of (shape, colour, seal, side) of both objects."""
    return [
        [SHAPES.index(t.shape), COLOURS.index(t.colour), SEALS.index(t.seal), side]
        for side, t in enumerate(scene.things)
    ]


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


def _train(
    model: Any,
    eyes: Eyes,
    steps: int,
    lr: float,
    batches: Iterator[list[Encoded]],
    report: Progress,
    stage: str,
    gate_loss: float | None = None,
) -> None:
    """Trains the language model on batches.

    With `gate_loss`, the learning rate stays up until the mean loss of the last `GATE_WINDOW` steps has come
    down to it, for at most `steps` steps: the circuit that looks an object up in the picture forms suddenly,
    and at a time that differs from seed to seed by a factor of three.
    """
    # Muon on the matrices: the circuit that looks an object up in the picture forms in a third of AdamW's steps.
    named = list(model.model.language_model.named_parameters())  # lm_head is the embedding
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=0.15 * lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    recent: deque[float] = deque(maxlen=GATE_WINDOW)

    def settled() -> bool:
        return gate_loss is not None and len(recent) == GATE_WINDOW and sum(recent) / GATE_WINDOW <= gate_loss

    for step in _schedule(optimizers, steps, settled):
        loss = imitation_loss(model, eyes, next(batches))
        _step(loss, optimizers)
        recent.append(loss.item())
        report(stage, step, steps, loss.item())


def imitation_loss(model: Any, eyes: Eyes, batch: Sequence[Encoded]) -> torch.Tensor:
    """Mean negative log-likelihood over the student's tokens of a batch."""
    length = max(len(e.ids) for e in batch)
    ids = torch.full((len(batch), length), model.config.text_config.pad_token_id)
    mask = torch.zeros(len(batch), length)
    for row, e in enumerate(batch):
        ids[row, : len(e.ids)], mask[row, : len(e.mask)] = e.ids, e.mask
    embedded = model.get_input_embeddings()(ids)
    seen = eyes([e.scene for e in batch]).reshape(-1, embedded.shape[-1])
    embedded = embedded.masked_scatter((ids == model.config.image_token_id)[..., None], seen)
    # Padding stands right of everything, so the causal mask alone keeps it out.
    position = positions(length)[:, None].expand(3, len(batch), length)
    hidden = model.model.language_model(
        inputs_embeds=embedded, position_ids=position, use_cache=False
    ).last_hidden_state
    wanted = mask[:, 1:] > 0
    return nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), ids[:, 1:][wanted])


def _schedule(
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


def _step(loss: torch.Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()


def _batches(rng: random.Random, pool: list[Encoded], tokens: int) -> Iterator[list[Encoded]]:
    """Endless batches of about `tokens` tokens, each of dialogues alike in length: little padding."""
    while True:
        groups: list[list[Encoded]] = [[]]
        for encoded in sorted(rng.sample(pool, len(pool)), key=lambda e: len(e.ids) // 8):
            if groups[-1] and (len(groups[-1]) + 1) * len(encoded.ids) > tokens:
                groups.append([])
            groups[-1].append(encoded)
        rng.shuffle(groups)
        yield from groups


def _mixed(
    rng: random.Random, pool: list[Encoded], scripted: list[Encoded], habitual: list[Encoded], config: WarmupConfig
) -> Iterator[list[Encoded]]:
    while True:
        batch = []
        for _ in range(config.manner_batch):
            source = pool if rng.random() < config.exercise_share else scripted
            if source is scripted and rng.random() < config.habit_share:
                source = habitual
            batch.append(rng.choice(source))
        yield batch
