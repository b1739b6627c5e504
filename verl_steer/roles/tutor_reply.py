"""What a model that plays the tutor must write back."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from verl_steer.chat.structured import StrictReply
from verl_steer.roles.question import Strategy
from verl_steer.scores import CEILING, FLOOR, TutorScores, lock_violation

Score = Annotated[int, Field(ge=FLOOR, le=CEILING)]


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
