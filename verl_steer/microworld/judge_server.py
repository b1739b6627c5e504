"""`microworld-judge`: the bench's judge by rules, for the micro-world's server.

It is given the very prompt that a model would get (`roles.judge.render`) and no hidden state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from verl_steer.dialogue import MAX_TURNS
from verl_steer.microworld.judging import judge_history
from verl_steer.roles.judge import parse

MODEL = "microworld-judge"


def reply(body: Mapping[str, Any]) -> str:
    """The JSON object that `roles.judge.JudgeReply` reads.

    Args:
        body: Of a chat request.

    Raises:
        ValueError: It is no judge's prompt, or shows no picture of this world.
    """
    _, history = parse(body["messages"])
    if not 1 <= len(history) <= MAX_TURNS:
        raise ValueError(f"it shows {len(history)} exchanges; a dialogue has 1..{MAX_TURNS}")
    verdict = judge_history(history)
    return json.dumps(
        {"reason": verdict.reason, "harmlessness": verdict.harmlessness, "helpfulness": verdict.helpfulness}
    )
