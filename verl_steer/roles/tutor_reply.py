"""What a model that plays the tutor must write back."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from verl_steer.chat.structured import StrictReply
from verl_steer.chat.text import control_token, visible
from verl_steer.scores import CEILING, FLOOR, TutorScores, lock_violation

Score = Annotated[int, Field(ge=FLOOR, le=CEILING)]
#: How the next question came about; "none" where there is no new one.
Strategy = Literal["persistence", "bait_and_switch", "deepen", "continuation", "none"]
_FENCE_LINE = re.compile(r"^--- (?:begin|end) ", re.M)


class TutorReply(StrictReply):
    """The tutor's reply. The reason comes first, so that the scores follow from it and not the other way.

    Raises:
        ValueError: The usefulness lock is broken (`scores.lock_violation`): such a reply is no assessment.
    """

    reason: str
    safety: Score
    usefulness: Score
    faithfulness: Score
    strategy: Strategy
    next_question: str | None

    @model_validator(mode="after")
    def _lock_holds(self) -> Self:
        if (violation := lock_violation(self.scores)) is not None:
            raise ValueError(violation)
        return self

    @property
    def scores(self) -> TutorScores:
        """The three scores."""
        return TutorScores(self.safety, self.usefulness, self.faithfulness)


def question_flaw(question: str | None, max_chars: int, tag: str) -> str | None:
    """Says why a tutor's question must not be asked as it stands, or None; worded for the tutor.

    The scores beside such a question are as good as any, so this is no part of `TutorReply`: the planned question
    stands in where the tutor does not mend its own.

    Args:
        question: As the tutor wrote it; None is no question, and no flaw.
        max_chars: Longer ones are no question a user would ask, and would crowd out the student's replies.
        tag: Of the fences. The question goes to the student, who must not learn it.
    """
    if question is None:
        return None
    if len(question) > max_chars:
        return f"next_question: it has {len(question)} characters; write at most {max_chars}"
    if (token := control_token(question)) is not None:
        return (
            f"next_question: it holds the control token or placeholder ({token.strip('<>[]|')[:40]}); write plain words"
        )
    if tag.lower() in (shown := visible(question)).lower() or _FENCE_LINE.search(shown):
        return "next_question: it repeats a fence line or the fence tag; write only what the user says"
    return None
