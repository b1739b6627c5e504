"""The red agent: puts a request into a framing (module 2), and asks a planned turn given what was said (stage II, module 4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from verl_steer.chat.structured import StrictReply
from verl_steer.dialogue import ImageRef, Kind
from verl_steer.roles.attack_names import FRAMINGS
from verl_steer.roles.fill import Fill, conversation, pictures
from verl_steer.roles.tutor import Exchange

FRAME, ASK = "framing", "red"
_FRAMING = re.compile(r"^Framing: (\w+)", re.M)


class QuestionReply(StrictReply):
    """What the user says."""

    question: str = Field(min_length=1)


def frame(tag: str, question: str, seen: str, framing: str, images: tuple[ImageRef, ...]) -> Fill:
    """Asks for `question` in one of the eight framings.

    Args:
        tag: Of the fences.
        question: The obfuscated rewrite.
        seen: The forensics in one line.
        framing: A key of `FRAMINGS`.
        images: The seed's pictures.
    """
    task = f"Framing: {framing} ({FRAMINGS[framing]}).\nRewrite the question in this framing."
    return Fill(FRAME, tag, (("question", question), ("forensics", seen)), task, images)


def framing_of(task: str) -> str:
    """The framing that a task names.

    Raises:
        ValueError: It names none of ours.
    """
    found = _FRAMING.search(task)
    if found is None or found[1] not in FRAMINGS:
        raise ValueError("the task names no framing")
    return found[1]


def ask_turn(
    tag: str, planned: str, kind: Kind, history: Sequence[Exchange], images: tuple[ImageRef, ...], goal: str = ""
) -> Fill:
    """Asks for the next user turn: the planned one as it comes naturally after `history`.

    Args:
        tag: Of the fences.
        planned: The script's question.
        kind: The pool; a benign script stays benign.
        history: What was said before.
        images: Shown with this turn.
        goal: The planner's goal and technique for this turn, or "".
    """
    fields = (*conversation(history), ("planned question", planned), *((("goal", goal),) if goal else ()))
    task = f"Intent: {'harmful' if kind.harmful else 'benign'}.\nWrite user turn {len(history) + 1}."
    return Fill(ASK, tag, fields, task, (*pictures(history), *images))
