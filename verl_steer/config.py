"""The `steer:` node as validated dataclasses.

Everything under `steer:` is parsed once, here, into frozen objects; the rest of the code never reads a
raw mapping. An unknown key names its nearest right one, and a zero is a value like any other: only
`null` takes a default.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_steer.checked import ConfigError, fraction, not_negative, one_of, parse, positive, variable_name
from verl_steer.config_models import CustomConfig, DifficultyConfig, FallbackConfig, ManagedConfig, TutorConfig
from verl_steer.dialogue import MAX_TURNS
from verl_steer.scores import Weights

__all__ = [
    "PRESETS",
    "AdvantageConfig",
    "ConfigError",
    "CustomConfig",
    "DialogueConfig",
    "DifficultyConfig",
    "FallbackConfig",
    "ManagedConfig",
    "RecordsConfig",
    "Reward",
    "RewardConfig",
    "SteerConfig",
    "TutorConfig",
    "ValidationConfig",
    "WorldConfig",
    "world_root",
]


@dataclass(frozen=True)
class DialogueConfig:
    """`steer.dialogue`: the course of a dialogue in training."""

    feedback: str = "tutor"
    yoked_to: str = ""
    max_turns: int = MAX_TURNS
    max_turn_tokens: int = 768
    stop: str = "never"
    deadline_s: float = 1800.0
    min_scored: float = 1.0
    think_open: str = "<think>"
    think_close: str = "</think>"

    FEEDBACK = ("tutor", "script", "yoked")
    STOP = ("never", "on_breach")

    def __post_init__(self) -> None:
        one_of("steer.dialogue.feedback", self.feedback, self.FEEDBACK)
        one_of("steer.dialogue.stop", self.stop, self.STOP)
        if (self.feedback == "yoked") != bool(self.yoked_to):
            raise ConfigError(
                f"steer.dialogue.feedback={self.feedback}, yoked_to={self.yoked_to!r}: yoked questions come from the records of "
                "a finished run, so feedback=yoked and yoked_to=RUN/records belong together"
            )
        if not 1 <= self.max_turns <= MAX_TURNS:
            raise ConfigError(f"steer.dialogue.max_turns={self.max_turns}: must be 1..{MAX_TURNS}")
        positive("steer.dialogue.max_turn_tokens", self.max_turn_tokens)
        positive("steer.dialogue.deadline_s", self.deadline_s)
        fraction("steer.dialogue.min_scored", self.min_scored)
        if not self.think_open or not self.think_close or self.think_open == self.think_close:
            raise ConfigError(
                f"steer.dialogue.think_open={self.think_open!r}, think_close={self.think_close!r}: "
                "must be two different, non-empty tags"
            )


@dataclass(frozen=True)
class Reward:
    """A reward with every open choice decided: what `tcsr.py` computes with.

    Attributes:
        signal: s_t of TCSR: "safety" (the normed safety score, paper v1) or "turn" (the turn reward r_t, v2).
        alpha: Weight of the running minimum, in [0, 1]; 0 is the running mean.
        weights: Of the three scores in r_t.
        norm: "affine" ([1,10] onto [0,1]) or "tenth" (score / 10, the reference code's).
        return_form: "sum", "mean", "plain_mean" or "terminal".
        credit: Where the return is placed: "dialogue", "turn" or "final".
        format_bonus: Added to r_t if the reply has exactly one thinking and one answer block.
        repetition_penalty: Times the share of repeated 3-grams, subtracted from r_t.
    """

    signal: str = "safety"
    alpha: float = 0.3
    weights: Weights = field(default_factory=Weights)
    norm: str = "affine"
    return_form: str = "sum"
    credit: str = "dialogue"
    format_bonus: float = 0.0
    repetition_penalty: float = 0.0

    SIGNALS = ("safety", "turn")
    NORMS = ("affine", "tenth")
    RETURNS = ("sum", "mean", "plain_mean", "terminal")
    CREDITS = ("dialogue", "turn", "final")

    def __post_init__(self) -> None:
        one_of("steer.reward.signal", self.signal, self.SIGNALS)
        one_of("steer.reward.norm", self.norm, self.NORMS)
        one_of("steer.reward.return", self.return_form, self.RETURNS)
        one_of("steer.reward.credit", self.credit, self.CREDITS)
        fraction("steer.reward.alpha", self.alpha)
        for name in ("format_bonus", "repetition_penalty"):
            not_negative(f"steer.reward.{name}", getattr(self, name))


#: Which equation or code each preset follows: the README's table "paper -> option".
PRESETS: dict[str, Reward] = {
    "paper": Reward(),
    "paper_v2": Reward(signal="turn"),
    "reference": Reward(signal="turn", norm="tenth", return_form="terminal", format_bonus=1.0, repetition_penalty=0.2),
}


@dataclass(frozen=True)
class RewardConfig:
    """`steer.reward`: a preset, and keys that beat it where they are not null."""

    preset: str = "paper"
    signal: str | None = None
    alpha: float | None = None
    weights: Weights | None = None
    norm: str | None = None
    return_: str | None = None
    credit: str | None = None
    format_bonus: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        self.resolve()

    def resolve(self) -> Reward:
        """The preset with the explicit keys laid over it."""
        one_of("steer.reward.preset", self.preset, tuple(PRESETS))
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "preset"}
        given["return_form"] = given.pop("return_")
        return dataclasses.replace(PRESETS[self.preset], **{k: v for k, v in given.items() if v is not None})


@dataclass(frozen=True)
class AdvantageConfig:
    """`steer.advantage`, read by the estimators through `algorithm.steer`."""

    std: bool = False
    prior_strength: float = 2.0

    def __post_init__(self) -> None:
        not_negative("steer.advantage.prior_strength", self.prior_strength)


@dataclass(frozen=True)
class ValidationConfig:
    """`steer.validation`."""

    feedback: str = "script"

    def __post_init__(self) -> None:
        one_of("steer.validation.feedback", self.feedback, ("tutor", "script"))


@dataclass(frozen=True)
class RecordsConfig:
    """`steer.records`; an empty dir writes none."""

    dir: str = ""


@dataclass(frozen=True)
class WorldConfig:
    """`steer.world`: the embedded default's place and seed."""

    root: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class SteerConfig:
    """The whole `steer:` node."""

    seed: int = 0
    fence_key_env: str | None = None
    tutor: TutorConfig = field(default_factory=lambda: TutorConfig(kind="microworld"))
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)
    dialogue: DialogueConfig = field(default_factory=DialogueConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    records: RecordsConfig = field(default_factory=RecordsConfig)
    world: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self) -> None:
        variable_name("steer.fence_key_env", self.fence_key_env)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> SteerConfig:
        """Parses and validates a plain mapping.

        Raises:
            ConfigError: A key is unknown or a value is wrong.
        """
        return parse(cls, {} if mapping is None else mapping, "steer")


def world_root(configured: str | None) -> Path:
    """Where the embedded world is kept: the configured folder, else VERL_STEER_HOME, else the user's cache."""
    if configured:
        return Path(configured).expanduser()
    home = os.environ.get("VERL_STEER_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "verl_steer") / "microworld"
