"""How hard are the attacks? A frozen student answers one question of one rollout a group.

The question is drawn by the run's seed, so the mean over a step estimates the frozen student's failure rate on the
attacks that this step's rollouts met, at one extra reply and one extra verdict a group. A frozen reply or verdict
that does not come is left out of the mean; it never touches the rollout, its reward or its deadline.
"""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from typing import Any

from verl_steer.chat.outcome import Outcome
from verl_steer.roles.frozen import FrozenStudent
from verl_steer.roles.tutor import Tutor, TutorRequest


async def meet(student: FrozenStudent, tutor: Tutor, request: TutorRequest, max_tokens: int) -> dict[str, Any]:
    """Lets the frozen student answer one question of a finished dialogue.

    Args:
        student: The frozen one.
        tutor: Who judges its reply.
        request: To the tutor, with the dialogue as history; `random_key` draws the question.
        max_tokens: Length of the reply.

    Returns:
        For the record: the turn (from 1), the frozen student's reply, its outcome, and its scores or None.
    """
    t = random.Random(f"{request.random_key}|difficulty").randrange(len(request.history))
    before, asked = request.history[:t], request.history[t]
    said = await student.reply(request.script.system, before, asked.question, asked.images, max_tokens)
    found: dict[str, Any] = {"turn": t + 1, "reply": said.text, "outcome": said.outcome.value, "scores": None}
    if said.outcome is Outcome.OK:
        history = (*before, replace(asked, reply=said.text, thinking=""))
        judged = await tutor.assess(replace(request, history=history, planned_next=None, adapt=False))
        found["outcome"] = judged.verdict.outcome.value
        found["scores"] = asdict(judged.verdict.scores) if judged.verdict.scores else None
    return found
