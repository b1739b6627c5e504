"""When no endpoint serves at all: wait, say so, and give up after a configured time.

An outage says nothing about the text a call was made for, so it must not become an outcome: a training
step of missing verdicts is a step thrown away. Calls wait here instead, one of them trying now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from verl_steer.chat.endpoints import Endpoints

T = TypeVar("T")

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0  # between tries; doubled each time
FIRST_REPORT_S = 60.0

log = logging.getLogger(__name__)


class ModelOutage(RuntimeError):
    """No endpoint of a model served for as long as the configuration allows."""


class Outage:
    """The state of one client's endpoints, seen as a whole. Belongs to one event loop.

    Args:
        model: Its name, for the log.
        limit_s: Seconds after which waiting calls raise.
    """

    def __init__(self, model: str, limit_s: float) -> None:
        self._model = model
        self._limit_s = limit_s
        self._began: float | None = None
        self._over = asyncio.Event()
        self._trying = asyncio.Lock()  # first come, first served
        self._pause_s = FIRST_PAUSE_S
        self._report_at = 0.0

    async def ride_out(self, attempt: Callable[[], Awaitable[T]], endpoints: Endpoints) -> T | None:
        """Waits for the end of the outage; one of the waiting calls at a time tries with a request of its own.

        Args:
            attempt: Sends a request.
            endpoints: Tell after it whether still none serves, and why.

        Returns:
            What the request that ended the outage brought, to the call that sent it; None to the others.

        Raises:
            ModelOutage: It lasts longer than allowed.
        """
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._begin(loop.time(), endpoints.trouble())
        while True:
            async with self._trying:
                if self._began is None:
                    return None
                elapsed = loop.time() - self._began
                if elapsed >= self._limit_s:
                    raise ModelOutage(
                        f"no endpoint of the model {self._model!r} has served for {elapsed:.0f} s ({endpoints.trouble()})"
                    )
                self._report(elapsed)
                if await self._interrupted(min(self._pause_s, self._limit_s - elapsed)):
                    return None
                self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
                found = await attempt()
                if not endpoints.all_down():
                    self.end()
                    return found

    def end(self) -> None:
        """Some endpoint serves."""
        if self._began is not None:
            lasted = asyncio.get_running_loop().time() - self._began
            log.warning("%s: serves again after %.0f s; going on", self._model, lasted)
            self._began = None
            self._over.set()

    def _begin(self, now: float, why: str) -> None:
        self._began, self._pause_s, self._report_at = now, FIRST_PAUSE_S, FIRST_REPORT_S
        self._over.clear()
        log.warning("%s: no endpoint serves (%s); waiting for at most %.0f s", self._model, why, self._limit_s)

    def _report(self, elapsed: float) -> None:
        if elapsed >= self._report_at:
            log.warning("%s: still no endpoint serves, %.0f s of %.0f s", self._model, elapsed, self._limit_s)
            self._report_at = 2 * elapsed

    async def _interrupted(self, seconds: float) -> bool:
        """Waits; true if the outage ended meanwhile (an older request came through)."""
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return False
        return True
