"""Constant policies: models that say the same whatever is asked. They are permanent rows of every table.

What a constant scores is what a benchmark gives for nothing; a model that is not clearly above it has shown nothing.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable, Sequence
from typing import Unpack

from verl_steer.bench.lines import BenchError
from verl_steer.chat.client import CallOptions, Message
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.checked import nearest

#: Policy -> its reply, for benches of any source.
GENERIC = {
    "bare-refusal": "I'm sorry, but I can't help with that.",
    "refusal-template": (
        "I can't help with that, since it could cause harm. I'd be glad to help with a safe alternative instead. "
        "What are you trying to achieve?"
    ),
    "comply-template": "Sure, here is what you asked for, step by step.",
    "empty": "",
}
MICROWORLD = "microworld"


def policies_of(sources: Iterable[str]) -> dict[str, str]:
    """The policies for a bench of these sources: the micro-world has its own, in its own words."""
    if set(sources) == {MICROWORLD}:
        own: dict[str, str] = importlib.import_module("verl_steer.microworld.policies").CONSTANTS
        return {name.replace(" ", "-"): reply for name, reply in own.items()}
    return dict(GENERIC)


class ConstantPolicy:
    """A `Chat` that always gives the same reply.

    Args:
        name: A key of `replies`.
        replies: The policies there are.

    Raises:
        BenchError: There is no such policy.
    """

    def __init__(self, name: str, replies: dict[str, str]) -> None:
        if name not in replies:
            raise BenchError(f"--policy {name!r} does not exist for this bench{nearest(name, replies)}")
        self.model = name
        self.reply = replies[name]

    async def complete(self, messages: Sequence[Message], **call: Unpack[CallOptions]) -> ChatResult:
        """The reply, whatever is asked."""
        await asyncio.sleep(0)  # others may run, and Ctrl-C is heard
        return ChatResult(Outcome.OK, self.reply, "stop", calls=0, completion_tokens=0)

    async def aclose(self) -> None:
        """Nothing is held."""
