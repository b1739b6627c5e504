"""Warms the student up: eyes, then language, then a first manner.

Three short stages, because a tiny model that must find out everything from next-token loss spends
most of its time blind: first the vision tower alone learns to tell shapes, colours and seals
(through heads that are thrown away), then the whole model does exercises until it looks things up
in picture and dialogue, then exercises and lessons together. Seeded; a progress bar.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from verl_steer.microworld.encoding import SIDE, Encoder, pixels, word_id
from verl_steer.microworld.exercises import exercise, random_scene
from verl_steer.microworld.fitting import Imitation, Imitator, endless_batches, optimizers_of, schedule, step_all
from verl_steer.microworld.lexicon import COLOURS, SEALS, SHAPES, stable
from verl_steer.microworld.manner import Mixture
from verl_steer.microworld.picture import Scene
from verl_steer.microworld.scripts import generate
from verl_steer.microworld.sizes import WarmupConfig
from verl_steer.microworld.student import build_model, build_processor

OBJECT_TOKENS = [3, 5]  # of the nine: middle row, left and right
GATE_WINDOW = 40  # steps over which a share is averaged before it is believed
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
    encoder, imitate = Encoder(processor.tokenizer), Imitator(model, processor.tokenizer)
    pool = [encoder(exercise(rng, rng.random() < config.remember_share)) for _ in range(config.exercises)]
    _train_language(model, imitate, endless_batches(rng, pool, config.batch_tokens), config, report)
    mixture = Mixture(rng, pool, generate("sft", seed, config.lesson_pairs), encoder, config)
    optimizers = optimizers_of(model, config.manner_lr)
    for step in schedule(optimizers, config.manner_steps):
        found = imitate(mixture.batch())
        step_all(found.loss, optimizers)
        mixture.tell(found.refusals)
        report("manner", step, config.manner_steps, found.loss.item())
    return model.eval(), processor


def _train_language(
    model: Any, imitate: Imitator, batches: Iterator[Any], config: WarmupConfig, report: Progress
) -> None:
    """Exercises, until what has to be looked up is right often enough, and at most `base_steps` steps.

    The circuits that look an object up in the picture, and in the dialogue, form suddenly, at steps that differ
    from seed to seed; the learning rate stays up until they have.
    """
    optimizers = optimizers_of(model, config.lr)
    recent: deque[Imitation] = deque(maxlen=GATE_WINDOW)

    def settled() -> bool:
        if len(recent) < GATE_WINDOW:
            return False
        read, recalled = (torch.cat([getattr(f, name) for f in recent]) for name in ("reads", "recalls"))
        return bool(read.float().mean() >= config.gate_reading and recalled.float().mean() >= config.gate_recall)

    for step in schedule(optimizers, config.base_steps, settled):
        found = imitate(next(batches))
        step_all(found.loss, optimizers)
        recent.append(replace(found, loss=found.loss.detach()))
        report("language", step, config.base_steps, found.loss.item())


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
    words = [torch.tensor([word_id(vocabulary, word) for word in group]) for group in names]
    embed = model.get_input_embeddings().weight.detach()
    embed = nn.functional.normalize(embed, dim=-1)
    visual = model.model.visual
    optimizers = [torch.optim.AdamW(visual.parameters(), lr=config.vision_lr, weight_decay=0.01, betas=(0.9, 0.98))]
    for step in schedule(optimizers, config.vision_steps):
        pick = torch.tensor(rng.sample(range(len(scenes)), min(config.vision_batch, len(scenes))))
        seen = visual(values[pick].flatten(0, 1), grid_thw=grid[pick]).pooler_output
        seen = seen.reshape(len(pick), SIDE * SIDE, -1)[:, OBJECT_TOKENS].flatten(0, 1)
        size = seen.norm(dim=-1)
        seen = SHARPNESS * nn.functional.normalize(seen, dim=-1)
        told = truth[pick].flatten(0, 1)
        losses = [nn.functional.cross_entropy(seen @ embed[ids].T, told[:, k]) for k, ids in enumerate(words)]
        # As long as a word's embedding: an image token that dwarfs its neighbours hardly changes in the layers above.
        loss = torch.stack(losses).mean() + 0.1 * (size.log() ** 2).mean()
        step_all(loss, optimizers)
        report("eyes", step, config.vision_steps, loss.item())


def _facts(scene: Scene) -> list[list[int]]:
    """Indices of (shape, colour, seal, side) of both objects."""
    return [
        [SHAPES.index(t.shape), COLOURS.index(t.colour), SEALS.index(t.seal), side]
        for side, t in enumerate(scene.things)
    ]
