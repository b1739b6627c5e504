"""A deadline that can stand still.

A call has so many seconds for the model; it should not lose them by queueing behind our own calls, and
a dialogue should not be cut because every server was down. So the clock of a call, and where needed that
of its caller, is stopped while it waits for something that is no doing of the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class Deadline:
    """Seconds for the block of an `async with`; like `asyncio.timeout`, it raises TimeoutError at their end.

    Args:
        seconds: Of them, those inside `paused` are not counted.
        within: The caller's own deadline, or None; it runs on unless a pause says otherwise.
    """

    def __init__(self, seconds: float, within: Deadline | None = None) -> None:
        self._left = seconds
        self._until = 0.0
        self._pauses = self._outer_pauses = 0
        self._callers = [] if within is None else [within]
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> Deadline:
        self._until = asyncio.get_running_loop().time() + self._left
        self._timeout = asyncio.timeout_at(self._until)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._timeout is not None  # it was entered
        self._left = self.left()
        timeout, self._timeout = self._timeout, None
        await timeout.__aexit__(kind, error, trace)

    def left(self) -> float:
        """Seconds that remain, perhaps less than 0."""
        if self._timeout is None or self._pauses:
            return self._left
        return self._until - asyncio.get_running_loop().time()

    @contextmanager
    def paused(self, *, outer: bool = False) -> Iterator[None]:
        """Stops the clock inside the block.

        Args:
            outer: Stop that of the callers too.
        """
        self._stop(outer)
        try:
            yield
        finally:
            self._start(outer)

    @contextmanager
    def shared_with(self, caller: Deadline) -> Iterator[None]:
        """Counts `caller` among the callers inside the block: it waits for the same answer.

        Args:
            caller: Its clock stands still where theirs do, from now on if they do already.
        """
        self._callers.append(caller)
        for _ in range(self._outer_pauses):
            caller._stop(outer=True)
        try:
            yield
        finally:
            self._callers.remove(caller)
            for _ in range(self._outer_pauses):
                caller._start(outer=True)

    def _stop(self, outer: bool) -> None:
        self._left = self.left()
        self._pauses += 1
        self._set(None)
        if outer:
            self._outer_pauses += 1
            for caller in self._callers:
                caller._stop(outer=True)

    def _start(self, outer: bool) -> None:
        self._pauses -= 1
        if not self._pauses:
            self._until = asyncio.get_running_loop().time() + self._left
            self._set(self._until)
        if outer:
            self._outer_pauses -= 1
            for caller in self._callers:
                caller._start(outer=True)

    def _set(self, when: float | None) -> None:
        # An end that has come already cannot be moved; the block is about to see it.
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(when)
