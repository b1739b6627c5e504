"""What all rollouts of a row start from, made once a row: verl plays K of them, and they differ in nothing yet.

Script, decoded pictures, prompt tokens, and the tokens of every planned question. `Once` carries it from
the first rollout that asks to its siblings; it belongs to one row of one step and is dropped with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image
from verl.experimental.agent_loop.agent_loop import AgentLoopBase

from verl_steer.data.rows import row_to_script
from verl_steer.dialogue import Script, UserTurn
from verl_steer.plugin.tokens import Message, Question, tokenise, user_message
from verl_steer.roles.fence import neutralise
from verl_steer.threads import in_thread

T = TypeVar("T")


class Once:
    """Awaitable work by name, each done once, however many ask for it and whenever they do.

    Args:
        gate: Shared with other rows, or None: how many of them may work at once. Without it a step's rows would
            all be opened at the same time, and the first dialogue would start no earlier than the last.
    """

    def __init__(self, gate: asyncio.Semaphore | None = None) -> None:
        self._gate = gate or contextlib.nullcontext()
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def get(self, name: str, make: Callable[[], Awaitable[T]], gated: bool = True) -> T:
        """The result of the first `make` given under `name`; its exception, for everyone, if it raised.

        Args:
            name: Of the work.
            make: Does it.
            gated: False for work that mostly waits: it neither takes nor keeps a place at the gate.
        """
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = asyncio.ensure_future(self._run(make) if gated else make())
        # Whoever asks may be cancelled; the others still need it.
        found: T = await asyncio.shield(task)
        return found

    async def _run(self, make: Callable[[], Awaitable[T]]) -> T:
        async with self._gate:
            return await make()


@dataclass(frozen=True)
class Opening:
    """The common start of a row's rollouts. Shared: nothing in it may be changed.

    Attributes:
        script: What is planned.
        messages: System prompt and first user turn.
        prompt_ids: Their tokens, generation prompt included.
        images: The pictures of each planned turn, as the processor wants them.
        questions: The planned questions of turn 2, 3, …, tokenised.
    """

    script: Script
    messages: list[Message]
    prompt_ids: list[int]
    images: list[list[Any]]
    questions: list[Question]

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each planned user turn, at most; 0 for the first, which is part of the prompt."""
        return [0, *(question.length for question in self.questions)]


async def open_row(loop: AgentLoopBase, row: Mapping[str, Any], max_turns: int) -> Opening:
    """Reads and tokenises a row.

    Args:
        loop: The agent loop of any of the row's rollouts.
        row: The data set row, with verl's `raw_prompt`.
        max_turns: `steer.dialogue.max_turns`.

    Raises:
        RowError: The row's columns disagree.
        ValueError: A picture for a student that cannot see; a picture prompt over `rollout.prompt_length`.
    """
    script = row_to_script({**row, "prompt": row["raw_prompt"]})
    turns = script.turns[:max_turns]
    images = [await _load_images(loop, turn) for turn in turns]
    messages = [user_message(neutralise(turn.text), shown) for turn, shown in zip(turns, images, strict=True)]
    opening = [*([{"role": "system", "content": neutralise(script.system)}] if script.system else []), messages[0]]
    loop._assert_mm_supported(bool(images[0]))
    prompt_ids = await loop.ct_build_initial_tokens(opening, images=images[0] or None)
    return Opening(script, opening, prompt_ids, images, await tokenise(loop, messages[1:]))


async def _load_images(loop: AgentLoopBase, turn: UserTurn) -> list[Any]:
    """Decodes a turn's pictures, in a thread, the way verl's data set does (size limits included)."""
    if not turn.images:
        return []

    def decode() -> list[dict[str, Any]]:
        return [{"type": "image", "image": Image.open(io.BytesIO(ref.data)).convert("RGB")} for ref in turn.images]

    content = await in_thread(decode)
    loaded = await loop.process_multi_modal_info([{"role": "user", "content": content}])
    return list(loaded["images"])
