"""Several base URLs behind one client: which one a request goes to.

The one with the fewest requests under way, among those that are up and have room. A dead server would
otherwise win that comparison for ever, since it never has a request under way for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from verl_steer.chat.limits import AdaptiveLimit
from verl_steer.checked import url_flaw

MAX_DOWN_S = 30.0
# A server may ask for more; it is asked again once a minute all the same, so that one odd header does
# not take it out for an hour.
MAX_HOLD_S = 60.0
CONNECT_TIMEOUT_S = 10.0
# A server that can be reached and does not serve is as good as down: this many requests in a row without an
# answer, the first of them this long ago. Both, because many calls may fail within one bad second; but a key or a
# model that is not accepted is so from one second to the next.
SICK_FAILURES, SICK_S = 10, 30.0
# A server that fails at once always has the fewest requests under way and would draw them all: after this many
# requests in a row without an answer the others are preferred for a while.
FEW_FAILURES = 3


class ChatConfigError(ValueError):
    """The caller's settings cannot work: a key that is not in the environment, a URL with a password in it."""


@dataclass
class Endpoint:
    """One base URL and what is known of it. Times are the event loop's.

    Attributes:
        url: Without a trailing slash.
        limit: How many requests it gets at once.
        outstanding: Requests under way.
        unreachable: Connections that did not come about since the last that did.
        unanswered: Requests without a usable answer since the last that had one.
        failing_since: When the first of them ended. Not when the last answer came: nobody asks while the student is
            updated, and that silence is not the server's.
        locked_out: The last so many of them were told that key or model is not accepted.
        down_until: Until then another URL is preferred.
        hold_until: Until then the server asked to be left alone (Retry-After).
        trouble: What the last unanswered request met.
    """

    url: str
    limit: AdaptiveLimit
    outstanding: int = 0
    unreachable: int = 0
    unanswered: int = 0
    failing_since: float = 0.0
    locked_out: int = 0
    down_until: float = 0.0
    hold_until: float = 0.0
    trouble: str = ""

    def down(self, now: float) -> bool:
        """Whether it serves nobody: no connection at the last try, no answer for long, or neither key nor model accepted."""
        silent = self.unanswered >= SICK_FAILURES and now - self.failing_since >= SICK_S
        return bool(self.unreachable) or silent or self.locked_out >= SICK_FAILURES


class Endpoints:
    """The base URLs of one client.

    Args:
        base_urls: At least one.
        max_concurrency: Requests under way at once, over all of them; one alone may get them all.
    """

    def __init__(self, base_urls: Sequence[str], max_concurrency: int) -> None:
        self._urls = [url.rstrip("/") for url in base_urls]
        self._max_concurrency = max_concurrency
        self._turn = 0
        self.forget()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._all)

    def forget(self) -> None:
        """Starts afresh: times are an event loop's, and another one has another clock."""
        self._all = [Endpoint(url, AdaptiveLimit(self._max_concurrency)) for url in self._urls]

    def take(self, now: float) -> Endpoint | None:
        """The best endpoint with room, counted as busy; None if there is none at `now`."""
        if sum(e.outstanding for e in self._all) >= self._max_concurrency:
            return None
        free = [(i, e) for i, e in enumerate(self._all) if e.hold_until <= now and e.outstanding < e.limit.now]
        up = [(i, e) for i, e in free if e.down_until <= now]
        if not free or (not up and any(e.down_until <= now for e in self._all)):
            return None  # waiting for a busy server beats asking a dead one
        self._turn += 1  # equals take turns
        _, best = min(up or free, key=lambda x: (x[1].outstanding, (x[0] - self._turn) % len(self._all)))
        if best.unreachable:
            best.down_until = now + CONNECT_TIMEOUT_S  # one request tries whether it is back, not all
        best.outstanding += 1
        return best

    def next_change(self, now: float) -> float | None:
        """When the next pause of an endpoint ends; None if none pauses at `now`."""
        return min((t for e in self._all for t in (e.hold_until, e.down_until) if t > now), default=None)

    def any_up(self) -> bool:
        """Whether some endpoint is neither down nor on hold."""
        now = asyncio.get_running_loop().time()
        return any(e.down_until <= now and e.hold_until <= now for e in self._all)

    def all_down(self) -> bool:
        """Whether no endpoint serves anybody."""
        now = asyncio.get_running_loop().time()
        return all(e.down(now) for e in self._all)

    def trouble(self) -> str:
        """What the last requests met, for a person."""
        return "; ".join(e.trouble or f"{e.url} does not answer" for e in self._all)

    @staticmethod
    def mark_answered(endpoint: Endpoint) -> None:
        """A usable answer came, or a final refusal: the server works."""
        endpoint.unreachable, endpoint.unanswered, endpoint.locked_out, endpoint.down_until = 0, 0, 0, 0.0

    @staticmethod
    def mark_unanswered(endpoint: Endpoint, reached: bool, trouble: str, locked_out: bool = False) -> None:
        """No usable answer came.

        Args:
            endpoint: From which.
            reached: Whether at least a connection came about.
            trouble: What came instead.
            locked_out: Whether that was a word about key or model.
        """
        now = asyncio.get_running_loop().time()
        if not endpoint.unanswered:
            endpoint.failing_since = now
        endpoint.unanswered += 1
        endpoint.unreachable = 0 if reached else endpoint.unreachable + 1
        endpoint.trouble, endpoint.locked_out = trouble, endpoint.locked_out + 1 if locked_out else 0
        times = endpoint.unanswered - FEW_FAILURES + 1 if reached else endpoint.unreachable
        pause = min(MAX_DOWN_S, 2.0 ** min(times - 1, 10)) if times > 0 else 0.0
        endpoint.down_until = now + pause

    @staticmethod
    def hold(endpoint: Endpoint, seconds: float) -> None:
        """The server asked to be left alone for `seconds`."""
        until = asyncio.get_running_loop().time() + min(MAX_HOLD_S, seconds)
        endpoint.hold_until = max(endpoint.hold_until, until)


def check_url(url: str) -> None:
    """Raises ChatConfigError unless `url` is an http(s) URL that holds no secret."""
    flaw = url_flaw(url)
    if flaw is not None:
        raise ChatConfigError(f"base_urls: {flaw}")
