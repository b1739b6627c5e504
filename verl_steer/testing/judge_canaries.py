"""The canaries (`canaries.py`) asked of a bench judge: the same labelled and hostile replies, on its scales.

The suite was written for the tutor's three scores in 1..10. A judge's two scales are laid onto two of them by adding
a constant (harmlessness + 4, helpfulness + 1), which changes neither kappa nor a rise; what is said of them in words
is said on the judge's own scales again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from verl_steer.chat.outcome import Outcome
from verl_steer.roles.judge import JudgeRequest, TurnJudge
from verl_steer.roles.tutor import Assessment, TutorRequest
from verl_steer.scores import TutorScores, Verdict
from verl_steer.testing.canaries import Canary, ask_all, hostile_variants
from verl_steer.testing.canary_report import Report, Scale, report

_ONTO = {"harmlessness": ("safety", 4), "helpfulness": ("usefulness", 1)}
JUDGE = Scale(
    names={score: name for name, (score, _) in _ONTO.items()},
    offsets={score: -added for score, added in _ONTO.values()},
)


class _AsTutor:
    """A judge as `roles.tutor.Tutor`, for the suite alone."""

    def __init__(self, judge: TurnJudge) -> None:
        self._judge = judge

    async def assess(self, request: TutorRequest) -> Assessment:
        verdict = await self._judge.judge(
            JudgeRequest(
                script=request.script,
                system=request.script.system,
                history=request.history,
                random_key=request.random_key,
                fence=request.fence,
                deadline_s=request.deadline_s,
            )
        )
        if verdict.harmlessness is None or verdict.helpfulness is None:
            return Assessment(Verdict(verdict.outcome, reason=verdict.reason))
        scores = TutorScores(_laid("harmlessness", verdict.harmlessness), _laid("helpfulness", verdict.helpfulness), 1)
        return Assessment(Verdict(Outcome.OK, scores, verdict.reason))

    async def aclose(self) -> None:
        """The judge is its owner's to close."""


def judge_canaries(attacks: int) -> list[Canary]:
    """The built-in clean cases with a judge's labels, and `attacks` hostile variants of each."""
    world = importlib.import_module("verl_steer.microworld.canaries")

    def label(outcome: str) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
        ranges, levels = world.judge_label(outcome)
        laid = {_ONTO[name][0]: (_laid(name, low), _laid(name, high)) for name, (low, high) in ranges.items()}
        return laid, {_ONTO[name][0]: _laid(name, level) for name, level in levels.items()}

    clean: list[Canary] = world.cases(label)
    return [*clean, *hostile_variants(clean, attacks)]


async def run_canaries(
    judge: TurnJudge,
    attacks: int,
    *,
    concurrency: int,
    deadline_s: float,
    done: Callable[[], None] = lambda: None,
) -> Report:
    """Asks a judge about the canaries and sums up; the report's "safety" is its harmlessness, see `JUDGE`."""
    answers = await ask_all(
        _AsTutor(judge), judge_canaries(attacks), concurrency=concurrency, deadline_s=deadline_s, done=done
    )
    return report(judge.model, answers, JUDGE)


def to_json(found: Report, attacks: int) -> dict[str, object]:
    """A report as it is stored: by the judge's own names."""
    plain = found.to_json()
    agreement = {name: plain["agreement"][score] for name, (score, _) in _ONTO.items()}  # type: ignore[index]
    return {**plain, "agreement": agreement, "attacks_each": attacks, "passes": not found.failures}


def stands(stored: Mapping[str, object] | None, attacks: int) -> bool:
    """Whether a stored report says of the judge what asking again would say.

    Args:
        stored: From `to_json`, or None.
        attacks: Hostile variants a canary that are wanted now.

    Returns:
        False, too, where a call failed or timed out: that says something of the network, and must not stay.
    """
    if not stored or stored.get("attacks_each") != attacks:
        return False
    met: set[object] = set()
    for part in ("clean_outcomes", "hostile_outcomes"):
        outcomes = stored.get(part)
        met |= set(outcomes) if isinstance(outcomes, Mapping) else set()
    return not any(outcome.value in met for outcome in Outcome if outcome.transient)


def _laid(name: str, value: int) -> int:
    return value + _ONTO[name][1]
