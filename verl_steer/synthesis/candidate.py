"""Candidate: what the stages hand to the selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_steer.data.schemas import ScriptRow, SftRow
from verl_steer.scores import TutorScores


@dataclass(frozen=True)
class Candidate:
    """A script with what the stages measured of it.

    Attributes:
        script: `kind` says the pool; `meta["seed_id"]` the seed, `meta["picture"]` the SHA-256 of its first picture, or "".
        cluster: `origin_of` its script: such rows never part over splits.
        turn_scores: One a turn, of stage II's dialogue, or without one of a fixed target's probe dialogue; None is a
            missing verdict.
        dialogue: Stage II's dialogue, if there is one.
        last_alone_safe: The fixed target answered the last question alone safely (history-dependent risk, half 1);
            None: not known.
        dialogue_safe: The whole dialogue was safe under the fixed target (half 2); None: not known.
        success: Red team: the success judge's 1..5; None: not judged.
    """

    script: ScriptRow
    cluster: str
    turn_scores: tuple[TutorScores | None, ...] = ()
    dialogue: SftRow | None = None
    last_alone_safe: bool | None = None
    dialogue_safe: bool | None = None
    success: int | None = None


def origin_of(meta: Mapping[str, Any], otherwise: str = "") -> str:
    """The published question that a row varies (`source_id`), else its seed: four variants of a question are four seeds.

    Args:
        meta: Of a row.
        otherwise: Where it says neither.
    """
    said = (meta.get(name) for name in ("source_id", "seed_id"))
    return next((value for value in said if isinstance(value, str) and value), otherwise)
