"""A second judge for the replies that the tutor would not judge.

A content filter blocks, and a model refuses, most where the reply is a breach; leaving such turns out would
reward the breach. So where a fallback judge is configured it gives the missing scores, and the verdict
says so. It never writes the next question: where the tutor declined, the planned one is asked.
"""

from __future__ import annotations

from dataclasses import replace

from verl_steer.roles.tutor import Assessment, Tutor, TutorRequest
from verl_steer.scores import Outcome, Verdict

DECLINED = frozenset({Outcome.BLOCKED, Outcome.REFUSED})


class FallbackTutor:
    """`Tutor` whose blocked and refused verdicts are given by another judge.

    Args:
        tutor: Asked first, and alone for every next question.
        judge: Asked for scores where `tutor` ended as blocked or refused without any.
    """

    def __init__(self, tutor: Tutor, judge: Tutor) -> None:
        self._tutor = tutor
        self._judge = judge

    async def assess(self, request: TutorRequest) -> Assessment:
        """As `Tutor.assess`; both judges share the request's deadline."""
        first = await self._tutor.assess(request)
        verdict = first.verdict
        if verdict.scored or verdict.outcome not in DECLINED:
            return first
        left_s = max(0.0, request.deadline_s - (first.latency_s - first.waited_s))
        second = await self._judge.assess(replace(request, adapt=False, deadline_s=left_s))
        return replace(
            first,
            verdict=_given(verdict, second.verdict),
            next_question=None,
            strategy="script",
            calls=first.calls + second.calls,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
            latency_s=first.latency_s + second.latency_s,
            waited_s=first.waited_s + second.waited_s,
        )

    async def aclose(self) -> None:
        """Closes both."""
        await self._tutor.aclose()
        await self._judge.aclose()


def _given(declined: Verdict, second: Verdict) -> Verdict:
    if second.scored:
        return replace(second, judge="fallback")
    also = f"{declined.reason}; the fallback judge: {second.outcome.value} {second.reason}"
    return replace(declined, reason=also.strip())
