"""Stage I, expand: a rewritten question -> a script of T user turns (paper, stage I)."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from verl_steer.chat.structured import StrictReply
from verl_steer.dialogue import ImageRef, Kind
from verl_steer.roles.fill import Fill

ROLE = "generator"
_TASK = re.compile(r"Write exactly (\d+) user turns\.")


class ScriptReply(StrictReply):
    """The user turns, in order."""

    turns: list[Annotated[str, Field(min_length=1)]]


def fill(tag: str, question: str, kind: Kind, turns: int, images: tuple[ImageRef, ...]) -> Fill:
    """Asks for a script that ends in `question`.

    Args:
        tag: Of the fences.
        question: The probe's rewrite.
        kind: Benign or obfuscated.
        turns: T.
        images: Shown with the first turn.
    """
    task = f"Intent: {'harmful' if kind.harmful else 'benign'}.\nWrite exactly {turns} user turns. The last one asks the question above."
    return Fill(ROLE, tag, (("question", question),), task, images)


def wanted_turns(task: str) -> int:
    """The T of a task that `fill` (or the planner's) wrote.

    Raises:
        ValueError: It names none.
    """
    if (found := _TASK.search(task)) is None:
        raise ValueError("the task does not say how many turns to write")
    return int(found[1])


def length_flaw(written: int, wanted: int) -> str | None:
    """Says that a script has another length than asked for, or None; worded for the model."""
    return None if written == wanted else f"turns: there are {written}; write exactly {wanted}"
