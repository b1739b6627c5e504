"""The queue in front of the endpoints: a call waits here until one of them has room.

First come, first served. Waiting costs a call none of its own time (`deadline.py`), and it ends,
because every call ahead has a deadline.
"""

from __future__ import annotations

import asyncio
from collections import deque

from verl_steer.chat.endpoints import ChatConfigError, Endpoint, Endpoints

MAX_WAITING = 16_384


class QueueFullError(ChatConfigError):
    """Far more calls were started than can be under way: an error of the caller, which should start fewer."""


class Slots:
    """Hands out endpoints, one for each request.

    Args:
        endpoints: What there is.
        max_waiting: The most calls that may wait.
    """

    def __init__(self, endpoints: Endpoints, max_waiting: int = MAX_WAITING) -> None:
        self._endpoints = endpoints
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[Endpoint]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def take(self) -> Endpoint:
        """An endpoint with room, as soon as there is one; give it back with `give_back`.

        Raises:
            QueueFullError: Too many calls wait already.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting and (endpoint := self._endpoints.take(loop.time())) is not None:
            return endpoint
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(
                f"{self._max_waiting} calls wait for a free slot already; start fewer dialogues at once or raise max_concurrency"
            )
        place: asyncio.Future[Endpoint] = loop.create_future()
        self._waiting.append(place)
        self._hand_out()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it came and the caller went, in the same instant
                self.give_back(place.result())
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def give_back(self, endpoint: Endpoint) -> None:
        """A request has ended."""
        endpoint.outstanding -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            # One reading of the clock for both questions: a pause that ended between two readings would be too long
            # for the first and over for the second, and the queue would wait for a timer that nobody set.
            now = asyncio.get_running_loop().time()
            if self._waiting[0].done():  # cancelled; it has not been removed yet
                self._waiting.popleft()
            elif (endpoint := self._endpoints.take(now)) is not None:
                self._waiting.popleft().set_result(endpoint)
            else:
                return self._look_again(now)

    def _look_again(self, now: float) -> None:
        """Nothing wakes the queue when a server's pause ends, but a timer."""
        at = self._endpoints.next_change(now)
        if at is not None and (self._timer is None or self._timer.when() > at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(at, self._timer_rang)

    def _timer_rang(self) -> None:
        self._timer = None
        self._hand_out()
