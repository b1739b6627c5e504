"""Work in a thread, off the event loop that all dialogues live on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Runs `work` in the loop's thread pool.

    Raises:
        RuntimeError: `work` ended in a StopIteration, as a processor does that finds more placeholders than pictures. Before Python
            3.13 asyncio cannot deliver one: whoever awaits it would wait for ever.
    """

    def run() -> T:
        try:
            return work()
        except StopIteration as error:
            raise RuntimeError(f"{work!r} ended in a StopIteration") from error

    return await asyncio.get_running_loop().run_in_executor(None, run)
