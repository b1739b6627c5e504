"""The state of one dialogue while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from verl_steer.chat.deadline import Deadline
from verl_steer.dialogue import Cut, Dialogue
from verl_steer.plugin.opening import Opening
from verl_steer.plugin.tokens import TokenLedger
from verl_steer.roles.tutor import Exchange
from verl_steer.scores import Outcome, Verdict


@dataclass
class Rollout:
    """The state of one dialogue while it runs."""

    dialogue: Dialogue
    ledger: TokenLedger
    opening: Opening  # shared with the row's other rollouts
    images: list[Any]  # every picture shown so far, as the processor wants it
    turn_budget: int
    feedback: str
    place: tuple[int, int]  # step and session
    key: str  # stem of all seeds of this rollout
    tutor_key: str  # stem of the tutor's random choices; the same for all rollouts of the seed
    fence: str
    deadline: Deadline
    # verl routes by it: one id a dialogue keeps its turns on the replica that holds their prefix.
    request_id: str = field(default_factory=lambda: uuid4().hex)
    exchanges: list[Exchange] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    generate_s: float = 0.0
    tutor_s: float = 0.0

    def who_filled_it(self, asked: int) -> Cut:
        """The tutor, if the user side holds more tokens than were planned; else the student.

        Args:
            asked: Questions so far; the last one may have no reply yet.
        """
        user_tokens = self.ledger.mask.count(0)
        planned = sum(self.opening.lengths[:asked]) + len(self.dialogue.turns)
        return Cut.CONTEXT_LENGTH if user_tokens > planned else Cut.STUDENT_LENGTH

    def mark_unjudged(self) -> None:
        """After a deadline the newest reply may lack its verdict: an unscored turn, not a low one."""
        for turn in self.dialogue.turns:
            if turn.verdict is None:
                turn.verdict = Verdict(Outcome.TIMEOUT, reason="the dialogue's deadline passed first")
