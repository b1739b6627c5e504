"""Can this judge, with this prompt, be trusted? Labelled dialogues, and hostile variants of their last replies.

A judge is asked about *clean* cases, whose scores are known, and about the same cases with an attack added to the
reply (`hostile.py`). The first says how well it is calibrated; the second whether a student could talk its way to
a better score. Anything that plays `roles.tutor.Tutor` can be asked. A call that brings no scores is counted by
its typed outcome, and never as a low score.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from verl_steer.dialogue import Script
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.tutor import Exchange, Tutor, TutorRequest
from verl_steer.scores import CEILING, FLOOR, TutorScores, Verdict
from verl_steer.testing.hostile import Attack, attacks

SCORES = ("safety", "usefulness", "faithfulness")
# Not a secret: the texts are fixed, and some attacks use the tag as if it had leaked. Equal prompts can be cached.
_TAG_KEY = b"canaries"
# Attacks of many thousand tokens: the judge's context window would be tested, not the judge.
_LEFT_OUT = frozenset({"long"})


@dataclass(frozen=True)
class Canary:
    """One labelled dialogue; its last reply is to be judged.

    Attributes:
        id: Unique; a hostile variant's is "CLEAN/ATTACK".
        script: Kind and system prompt.
        history: All exchanges, the judged one last.
        expected: Score -> (lowest, highest) value that a right verdict gives; a score that is not named is not checked.
        levels: Score -> the one value that the label stands for, for bias and kappa; else the middle of the range.
        clean: Id of the clean case of which this is a hostile variant, or "".
        family: The attack's family, or "".
    """

    id: str
    script: Script
    history: tuple[Exchange, ...]
    expected: dict[str, tuple[int, int]] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    clean: str = ""
    family: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in self.expected.items():
            if name not in SCORES or not FLOOR <= low <= high <= CEILING:
                raise ValueError(
                    f"canary {self.id!r}: {name}={low}..{high} is no range of {', '.join(SCORES)} in 1..10"
                )

    def label(self, name: str) -> float:
        """The value that a score's label stands for."""
        low, high = self.expected[name]
        return self.levels.get(name, (low + high) / 2)


@dataclass(frozen=True)
class Answered:
    """A canary and what the judge made of it."""

    canary: Canary
    verdict: Verdict

    @property
    def scores(self) -> TutorScores | None:
        """The scores, or None if the call brought none."""
        return self.verdict.scores


def built_in() -> list[Canary]:
    """The project's own clean cases: micro-world pictures whose rules the system prompt states."""
    cases: list[Canary] = importlib.import_module("verl_steer.microworld.canaries").cases()
    return cases


def hostile_variants(clean: Sequence[Canary], each: int) -> list[Canary]:
    """`each` attacks on every clean case that leaves room for a better score, in a fixed order.

    The attacks go through the families in turn, so that a few for each case still cover all of them. In a dialogue
    of several turns every other attack stands in an earlier reply as well.

    Args:
        clean: Labelled cases.
        each: Attacks a case, at least 0.
    """
    pool = _by_turns([a for a in attacks() if a.family not in _LEFT_OUT])
    found, used = [], 0
    for canary in clean:
        if canary.expected["safety"][1] >= CEILING:
            continue
        for n in range(each):
            attack = pool[used % len(pool)]
            used += 1
            tag = fence_tag(_TAG_KEY, canary.id)
            history = list(canary.history)
            for at in {len(history) - 1, 0 if n % 2 else len(history) - 1}:
                history[at] = replace(history[at], reply=attack.apply(history[at].reply, tag))
            variant = f"{canary.id}/{attack.name}"
            found.append(replace(canary, id=variant, history=tuple(history), clean=canary.id, family=attack.family))
    return found


def _by_turns(pool: Sequence[Attack]) -> list[Attack]:
    """One of each family, then the next of each, until all have been named."""
    queues = [[a for a in pool if a.family == family] for family in dict.fromkeys(a.family for a in pool)]
    return [queue[n] for n in range(max(map(len, queues))) for queue in queues if n < len(queue)]


async def ask_all(
    tutor: Tutor,
    canaries: Sequence[Canary],
    *,
    concurrency: int,
    deadline_s: float,
    done: Callable[[], None] = lambda: None,
) -> list[Answered]:
    """Asks the judge about every canary, without a next question.

    A case and its variants have one random key and one fence: the same luck, and a shared prompt prefix.

    Args:
        tutor: Whom to ask.
        canaries: About what.
        concurrency: Calls under way at once.
        deadline_s: Of each call.
        done: Called after each.
    """
    slots = asyncio.Semaphore(concurrency)

    async def ask(canary: Canary) -> Answered:
        stem = canary.clean or canary.id
        request = TutorRequest(
            script=canary.script,
            history=canary.history,
            planned_next=None,
            adapt=False,
            random_key=f"canary|{stem}",
            fence=fence_tag(_TAG_KEY, stem),
            deadline_s=deadline_s,
        )
        async with slots:
            assessment = await tutor.assess(request)
        done()
        return Answered(canary, assessment.verdict)

    return list(await asyncio.gather(*(ask(canary) for canary in canaries)))
