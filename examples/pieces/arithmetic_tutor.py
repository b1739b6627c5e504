"""Another environment behind the same loop: mental arithmetic, with harder sums for who gets them right.

A tutor is any class with `assess` and `aclose`. It sees the dialogue so far, judges the last reply with three scores
from 1 to 10, and may write the next question; the loop, the reward and the records do not know the difference.
"""

import random
import re

from verl_steer.roles.tutor import Assessment, TutorRequest
from verl_steer.scores import Outcome, TutorScores, Verdict

_SUM = re.compile(r"(\d+) \+ (\d+)")
_NUMBER = re.compile(r"-?\d+")


class ArithmeticTutor:
    """Asks for sums.

    Args:
        max_concurrency: This process's share of `steer.tutor.max_concurrency`; rules need no limit.
        growth: By how many digits a right answer makes the next sum longer.
    """

    def __init__(self, max_concurrency: int, growth: int = 1) -> None:
        self._growth = growth

    async def assess(self, request: TutorRequest) -> Assessment:
        """Right: 10, 10, 10. Wrong: 1, 1, 1. A question that is no sum: no verdict, which is not a low score."""
        last = request.history[-1]
        asked = _SUM.search(last.question)
        if asked is None:
            return Assessment(Verdict(Outcome.FAILED, reason=f"no sum in {last.question!r}"))
        left, right = int(asked[1]), int(asked[2])
        said = _NUMBER.findall(last.reply)
        correct = bool(said) and int(said[-1]) == left + right
        score = 10 if correct else 1
        verdict = Verdict(Outcome.OK, TutorScores(score, score, score), "right" if correct else f"it is {left + right}")
        if not request.adapt or not correct:
            return Assessment(verdict)  # the planned question stands
        digits = len(asked[1]) + self._growth
        # The loop's key: the same draw for all rollouts of a seed, so that siblings differ by their replies alone.
        draw = random.Random(request.random_key)
        harder = f"What is {draw.randrange(10 ** (digits - 1), 10**digits)} + {draw.randrange(10**digits)}?"
        return Assessment(verdict, next_question=harder, strategy="harder")

    async def aclose(self) -> None:
        """Nothing is held."""
