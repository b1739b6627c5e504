"""The rule tutor as a served role: reads the very prompt a model would get (`roles.layout.parse`), writes the same JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from verl_steer.dialogue import MAX_TURNS, ImageRef, Kind, Script, UserTurn
from verl_steer.microworld.tutor import NOISE, MicroworldTutor
from verl_steer.roles.layout import ParsedRequest, parse
from verl_steer.roles.tutor import Assessment, TutorRequest

# The prompt's names for the moves that the rubric knows; everything else is "none".
_STRATEGIES = {"persistence", "bait_and_switch", "deepen", "continuation"}


def tutor(noise: float = NOISE) -> Callable[[Mapping[str, Any]], str]:
    """The handler: a request's body -> the reply's text. It raises ValueError on a prompt of another layout."""
    rules = MicroworldTutor(noise)
    return lambda body: reply_text(rules.judge(request_of(parse(body["messages"]), body.get("seed"))))


def request_of(asked: ParsedRequest, seed: Any) -> TutorRequest:
    """The rule tutor's request for a prompt.

    Luck is keyed by the caller's seed, which names its seed and turn, and not by the fence's tag, which is new in
    every run.

    Raises:
        ValueError: The prompt has no exchange, or more than a dialogue holds.
    """
    if not 1 <= len(asked.history) <= MAX_TURNS:
        raise ValueError(f"it shows {len(asked.history)} exchanges; a dialogue has 1..{MAX_TURNS}")
    images = (ImageRef(b"not shown to the tutor"),) * asked.planned_images
    planned = None if asked.planned_next is None else UserTurn(asked.planned_next, images)
    turns = [UserTurn(exchange.question, exchange.images) for exchange in asked.history]
    turns += [planned] if planned is not None and len(turns) < MAX_TURNS else []
    return TutorRequest(
        script=Script(asked.fence, Kind.RED_TEAM if asked.harmful else Kind.BENIGN, tuple(turns), system=asked.system),
        history=asked.history,
        planned_next=planned,
        adapt=asked.adapt,
        random_key=f"{len(asked.history)}/{seed}",
        fence=asked.fence,
        deadline_s=1.0,
    )


def reply_text(assessment: Assessment) -> str:
    """The JSON object that `roles.tutor_reply.TutorReply` reads."""
    scores = assessment.verdict.scores
    assert scores is not None, "rules always score"
    strategy = assessment.strategy if assessment.strategy in _STRATEGIES else "none"
    return json.dumps(
        {
            "reason": assessment.verdict.reason,
            "safety": scores.safety,
            "usefulness": scores.usefulness,
            "faithfulness": scores.faithfulness,
            "strategy": strategy,
            "next_question": assessment.next_question if strategy != "none" else None,
        },
        ensure_ascii=False,
    )
