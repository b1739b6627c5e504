"""How large everything is. Pure; a hash of it is part of every result (`plan.config_hash`)."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from verl_steer.checked import nearest


class PlanError(ValueError):
    """An arm, a size or a seed that cannot be."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is; part of a run's identity.

    Attributes:
        warmup: Overrides of the world's own warm-up.
        seeds: Single-turn seeds that the synthesis pipeline starts from; half of them become STEER-SFT.
        sft_dialogues: Dialogues of stage II.
        sft_epochs: Over them.
        sft_batch: Dialogues a step.
        sft_lr: AdamW.
        rl_scripts: Scripts of stage III.
        rl_benign: The share of them that is benign.
        rl_steps: Updates.
        rl_batch: Scripts a step, each played five times.
        rl_lr: AdamW.
        rl_kl: Coefficient of the KL loss to the student that stage III starts from; 0: none.
        test_freq: Steps between points of the learning curve.
        curve_pairs: Twin pairs that a point is read on.
        bench_pairs: Twin pairs of the bench: so many benign dialogues, and as many harmful ones.
    """

    warmup: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 600
    sft_dialogues: int = 400
    sft_epochs: int = 1
    sft_batch: int = 16
    sft_lr: float = 5.5e-5
    rl_scripts: int = 288
    rl_benign: float = 0.5
    rl_steps: int = 24
    rl_batch: int = 16
    rl_lr: float = 1e-4
    rl_kl: float = 0.1
    test_freq: int = 8
    curve_pairs: int = 40
    bench_pairs: int = 200

    @property
    def sft_steps(self) -> int:
        """Updates of stage II; verl drops the last, incomplete batch of an epoch."""
        return self.sft_epochs * (self.sft_dialogues // self.sft_batch)


FULL = Sizes()
FAST = replace(
    FULL,
    seeds=250,
    sft_dialogues=200,
    rl_scripts=128,
    sft_epochs=2,
    rl_steps=12,
    test_freq=6,
    curve_pairs=20,
    bench_pairs=40,
)


def sized(sizes: Sizes, settings: Sequence[str]) -> Sizes:
    """`sizes` with `name=number` settings laid over; `warmup.name=number` reaches the warm-up.

    Raises:
        PlanError: A name or a number cannot be.
    """
    for setting in settings:
        name, _, text = setting.partition("=")
        own = name.removeprefix("warmup.")
        known = _warmup() if own != name else sizes
        types = {f.name: type(getattr(known, f.name)) for f in fields(known) if f.name != "warmup"}
        if own not in types:
            raise PlanError(f"--set {setting}: there is no such size{nearest(own, types)}")
        number = _number(setting, text, types[own], zero=name == "rl_kl")
        if own != name:
            sizes = replace(sizes, warmup={**sizes.warmup, own: number})
        else:
            sizes = replace(sizes, **{name: number})
    _check(sizes)
    return sizes


def flat(sizes: Sizes) -> dict[str, Any]:
    """Sizes as plain data."""
    return {**asdict(sizes), "warmup": dict(sizes.warmup)}


def _warmup() -> Any:
    return importlib.import_module("verl_steer.microworld.sizes").WarmupConfig()


def _number(setting: str, text: str, kind: type, zero: bool) -> Any:
    """The number of a setting, as its size's own type."""
    try:
        number = float(text) if any(sign in text.lower() for sign in ".en") else int(text)
    except ValueError as error:
        raise PlanError(f"--set {setting}: give name=number") from error
    if not (0 <= number < math.inf) or (number == 0 and not zero) or (kind is int and not isinstance(number, int)):
        raise PlanError(f"--set {setting}: must be a positive {kind.__name__}")
    return kind(number)


def _check(sizes: Sizes) -> None:
    """What several sizes must be together."""
    if sizes.rl_batch % 4:
        raise PlanError(
            f"rl_batch={sizes.rl_batch}: five rollouts each must fill micro-batches of 20; give a multiple of 4"
        )
    if sizes.rl_benign >= 1:
        raise PlanError(f"rl_benign={sizes.rl_benign}: must be a share below 1, or no script is harmful")
    if sizes.sft_dialogues < sizes.sft_batch:
        raise PlanError(f"sft_dialogues={sizes.sft_dialogues}: sft_batch={sizes.sft_batch} of them make a step")
    if sizes.rl_scripts < sizes.rl_batch:
        raise PlanError(f"rl_scripts={sizes.rl_scripts}: rl_batch={sizes.rl_batch} of them make a step")
