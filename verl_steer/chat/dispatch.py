"""A call's way to an answer: queue, request, retries, outages. The one layer that retries.

`client.py` above knows what a caller wants, `wire.py` below what came back; here it is decided what to do next.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from verl_steer.chat.deadline import Deadline
from verl_steer.chat.endpoints import Endpoint, Endpoints
from verl_steer.chat.outage import Outage
from verl_steer.chat.slots import Slots
from verl_steer.chat.structured import Dialect, JsonSchema, request_fields
from verl_steer.chat.wire import Fault, Reply, post

MAX_BACKOFF_S = 20.0


@dataclass
class Call:
    """One call under way; what it has cost survives a deadline.

    Attributes:
        body: The request, but for the fields that ask for structure.
        schema: What the reply should follow.
        key: Of the retries' jitter.
        headers: Of the request.
        secret: The API key, "" if there is none.
        deadline: Running; it and its callers' stand still in the queue and in an outage.
        trial_s: Seconds of a request that asks whether an outage is over.
        sent: HTTP requests so far.
        waited_s: Seconds that the deadline did not count.
        endpoint: The base URL that was asked last.
        detail: What the last request met.
    """

    body: dict[str, Any]
    schema: JsonSchema | None
    key: str
    headers: dict[str, str]
    secret: str
    deadline: Deadline
    trial_s: float
    sent: int = 0
    waited_s: float = 0.0
    endpoint: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Retries:
    """How often and how long to try; see `ChatClient`."""

    attempts: int
    backoff_s: float
    attempt_timeout_s: float | None


class Dispatcher:
    """Sends the calls of one client. Belongs to one event loop.

    Args:
        http: The pool.
        endpoints: Where to.
        retries: How often.
        dialects: Ways to ask for structure, in the order in which to try them.
        outage: Where calls wait while no endpoint serves, or None: they do not wait.
        max_reply_bytes: A longer HTTP body is not read.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        endpoints: Endpoints,
        retries: Retries,
        dialects: Sequence[Dialect],
        outage: Outage | None,
        max_reply_bytes: int,
    ) -> None:
        self._http = http
        self._endpoints = endpoints
        self._retries = retries
        self._dialects = dialects
        self._outage = outage
        self._max_reply_bytes = max_reply_bytes
        self._spoken: dict[str, Dialect] = {}  # base URL -> the dialect it understood
        self.slots = Slots(endpoints)

    async def run(self, call: Call) -> Reply | Fault:
        """An answer, or the fault that no retry cured.

        Raises:
            ModelOutage: No endpoint served for as long as the outage may last.
            QueueFullError: Far too many calls wait.
        """
        jitter = random.Random(call.key)
        attempt = pauses = failovers = 0
        while True:
            found = await self._ride_out(call) if self._is_outage() else await self._attempt(call)
            if found is None:
                continue  # the outage is over, and another call found out
            if isinstance(found, Reply) or not found.retry:
                return found
            call.detail = found.detail
            if found.unreachable and failovers + 1 < len(self._endpoints) and self._endpoints.any_up():
                failovers += 1
                continue
            if self._is_outage():
                continue
            attempt += not found.overloaded
            if attempt >= self._retries.attempts:
                return found
            pause = min(MAX_BACKOFF_S, self._retries.backoff_s * 2 ** min(pauses, 10))
            await asyncio.sleep(pause * jitter.uniform(0.5, 1.5))
            pauses += 1

    def _is_outage(self) -> bool:
        return self._outage is not None and self._endpoints.all_down()

    async def _ride_out(self, call: Call) -> Reply | Fault | None:
        """Waits for the end of an outage, the clocks of the call and its callers stopped."""
        assert self._outage is not None
        began, waited_before = time.perf_counter(), call.waited_s

        async def trial() -> Reply | Fault:
            try:
                async with asyncio.timeout(call.trial_s):
                    return await self._attempt(call)
            except TimeoutError:
                return Fault(f"no answer within {call.trial_s:.3g} s", retry=True)

        try:
            with call.deadline.paused(outer=True):
                return await self._outage.ride_out(trial, self._endpoints)
        finally:
            call.waited_s = waited_before + time.perf_counter() - began  # the trial's own queueing is part of it

    async def _attempt(self, call: Call) -> Reply | Fault:
        """One request, in the dialect its server speaks, once there is room for it."""
        began = time.perf_counter()
        # The callers' clocks too: where a whole validation set starts at once, all dialogues wait in this queue, and a slow
        # tutor would cut the long ones. The calls ahead have deadlines of their own, so nobody waits for ever.
        with call.deadline.paused(outer=True):
            endpoint = await self.slots.take()
        call.waited_s += time.perf_counter() - began
        clock = asyncio.get_running_loop().time
        sent_at = clock()
        try:
            found = await self._in_its_dialect(call, endpoint)
            call.endpoint = endpoint.url
            if isinstance(found, Reply) or not found.retry:
                self._endpoints.mark_answered(endpoint)
                endpoint.limit.grow(endpoint.outstanding)
                if self._outage is not None:
                    self._outage.end()
                return found
            self._endpoints.mark_unanswered(endpoint, not found.unreachable, found.detail, found.locked_out)
            if found.overloaded:
                endpoint.limit.shrink(sent_at, clock(), endpoint.outstanding)
            if found.retry_after_s:
                self._endpoints.hold(endpoint, found.retry_after_s)
            return found
        finally:
            self.slots.give_back(endpoint)

    async def _in_its_dialect(self, call: Call, endpoint: Endpoint) -> Reply | Fault:
        """Sends the request; steps down to the next dialect if the server objects to this one.

        A dialect is remembered only once a reply came: an odd 400 must not turn structure off for good.
        """
        if call.schema is None:
            return await self._send(call, endpoint, {})
        known = self._spoken.get(endpoint.url, self._dialects[0])
        first: Fault | None = None
        for dialect in self._dialects[self._dialects.index(known) :]:
            found = await self._send(call, endpoint, request_fields(dialect, call.schema))
            if isinstance(found, Reply):
                self._spoken[endpoint.url] = dialect
                return found
            first = first or found
            if not found.structure_rejected:
                return found
        assert first is not None  # there is at least one dialect
        return first

    async def _send(self, call: Call, endpoint: Endpoint, fields: dict[str, Any]) -> Reply | Fault:
        url, limit_s = f"{endpoint.url}/chat/completions", self._retries.attempt_timeout_s
        body = json.dumps(call.body | fields).encode("ascii")
        call.sent += 1
        try:
            async with asyncio.timeout(limit_s):
                return await post(self._http, url, call.headers, body, self._max_reply_bytes, call.secret)
        except TimeoutError:
            return Fault(f"{url} did not answer within {limit_s:.3g} s", retry=True)
