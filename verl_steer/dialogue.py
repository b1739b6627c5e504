"""Dialogue, Turn, Script, ImageRef: the one data structure that every room shares.

Why one: the agent loop, the tutor's prompt, the records and the bench all look at the same thing, a
conversation under construction. If each held its own form, "the judge sees what the student wrote"
could not be checked anywhere. Everything here is plain data; nothing here talks to a model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from verl_steer.scores import Verdict

MAX_TURNS = 10  # the paper's scripts hold 2..10 turns


class Kind(StrEnum):
    """The three disjoint pools of stage I."""

    BENIGN = "benign"
    OBFUSCATED = "obfuscated"
    RED_TEAM = "red_team"

    @property
    def harmful(self) -> bool:
        """True for the two pools whose script works towards something the student must not give."""
        return self is not Kind.BENIGN


class Cut(StrEnum):
    """Why a dialogue ended before its script did. The cause decides who pays; see `tcsr`."""

    STUDENT_LENGTH = "student_length"  # the student's own tokens filled the budget: missing turns at the floor
    CONTEXT_LENGTH = "context_length"  # the tutor's or an image's tokens did: the rollout is masked
    STOPPED = "stopped"  # a stop rule (on_breach): the student's doing, missing turns at the floor
    DEADLINE = "deadline"  # the dialogue's deadline passed: the rollout is masked

    @property
    def blames_student(self) -> bool:
        """True if missing turns are valued at the floor; false if the rollout leaves the loss."""
        return self in (Cut.STUDENT_LENGTH, Cut.STOPPED)


@dataclass(frozen=True)
class ImageRef:
    """One encoded image, as it came from the data set: never decoded here, never re-encoded.

    Attributes:
        data: The encoded file (PNG, JPEG, WebP or GIF bytes).
    """

    data: bytes = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the encoded bytes; what records hold instead of the image."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class UserTurn:
    """What the user side says in one turn.

    Attributes:
        text: The question, without image placeholders.
        images: Images shown with this turn, before the text.
    """

    text: str
    images: tuple[ImageRef, ...] = ()


@dataclass(frozen=True)
class Script:
    """A seed and the user turns planned for it.

    Attributes:
        seed_id: Stable id of the seed; keys every random choice and every record.
        kind: The pool it comes from.
        turns: 1..10 planned user turns, the first one included.
        category: Harm category of the source, or "".
        source: The data set it comes from, or "".
        system: System prompt, or "".
        meta: JSON-like extras of the source (the micro-world keeps its hidden state here). Never
            shown to the student or to a model that plays the tutor.
    """

    seed_id: str
    kind: Kind
    turns: tuple[UserTurn, ...]
    category: str = ""
    source: str = ""
    system: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.turns) <= MAX_TURNS:
            raise ValueError(
                f"seed {self.seed_id!r}: a script has 1..{MAX_TURNS} user turns, this one {len(self.turns)}"
            )


@dataclass
class Turn:
    """One exchange that has happened: what was asked, what the student replied, what it was worth.

    Attributes:
        planned: The scripted user turn at this position.
        asked: The text that was really asked (the tutor may have rewritten it).
        reply: Everything the student wrote, thinking included, end token excluded.
        verdict: The tutor's assessment of `reply`; None until it has come.
        strategy: How `asked` came about ("script" or the tutor's named move).
        reply_tokens: Number of tokens sampled for `reply`, end token included.
        truncated: The turn was cut at its own token budget.
        latency_s: Seconds the tutor took for this turn's assessment.
        tutor_calls: HTTP attempts (or rule evaluations) spent on it.
    """

    planned: UserTurn
    asked: str
    reply: str
    verdict: Verdict | None = None
    strategy: str = "script"
    reply_tokens: int = 0
    truncated: bool = False
    latency_s: float = 0.0
    tutor_calls: int = 0


@dataclass
class Dialogue:
    """One rollout of one script.

    Attributes:
        script: What was planned.
        turns: What happened, in order; every one has a reply.
        planned_turns: Turns this rollout should have had (script length after `max_turns`); the
            denominator of every length-neutral return, also when the dialogue was cut.
        cut: Why it ended early, or None.
    """

    script: Script
    planned_turns: int
    turns: list[Turn] = field(default_factory=list)
    cut: Cut | None = None
