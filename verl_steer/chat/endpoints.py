"""Several base URLs behind one client: which one a request goes to.

The one with the fewest requests under way, among those that are up. A dead server would otherwise win
that comparison for ever, since it never has a request under way for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

MAX_DOWN_S = 30.0
# A server may ask for more; it is asked again once a minute all the same, so that one odd header does
# not take it out for an hour.
MAX_HOLD_S = 60.0
CONNECT_TIMEOUT_S = 10.0


class ChatConfigError(ValueError):
    """The caller's settings cannot work: a key that is not in the environment, a URL with a password in it."""


@dataclass
class Endpoint:
    """One base URL and what is known of it. Times are the event loop's.

    Attributes:
        url: Without a trailing slash.
        outstanding: Requests under way.
        failures: Connections refused since the last that came about.
        down_until: Until then another URL is preferred.
        hold_until: Until then the server asked to be left alone (Retry-After).
    """

    url: str
    outstanding: int = 0
    failures: int = 0
    down_until: float = 0.0
    hold_until: float = 0.0


class Endpoints:
    """The base URLs of one client."""

    def __init__(self, base_urls: Sequence[str]) -> None:
        self._all = [Endpoint(url.rstrip("/")) for url in base_urls]
        self._turn = 0

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._all)

    def forget(self) -> None:
        """Starts afresh on another event loop, whose clock has another zero."""
        self._all = [Endpoint(endpoint.url) for endpoint in self._all]

    @contextmanager
    def lease(self) -> Iterator[Endpoint]:
        """The best endpoint now, counted as busy inside the block; `hold_until` may still lie ahead."""
        now = asyncio.get_running_loop().time()
        self._turn += 1  # equals take turns
        rotation = {id(e): (i - self._turn) % len(self._all) for i, e in enumerate(self._all)}
        best = min(
            self._all,
            key=lambda e: (max(0.0, e.hold_until - now), e.down_until > now, e.outstanding, rotation[id(e)]),
        )
        if best.failures:
            best.down_until = now + CONNECT_TIMEOUT_S  # one request tries whether it is back, not all
        best.outstanding += 1
        try:
            yield best
        finally:
            best.outstanding -= 1

    def any_up(self) -> bool:
        """Whether some endpoint is neither down nor on hold."""
        now = asyncio.get_running_loop().time()
        return any(e.down_until <= now and e.hold_until <= now for e in self._all)

    @staticmethod
    def mark_reached(endpoint: Endpoint) -> None:
        """A connection came about."""
        endpoint.failures, endpoint.down_until = 0, 0.0

    @staticmethod
    def mark_down(endpoint: Endpoint) -> None:
        """No connection came about."""
        endpoint.failures += 1
        pause = min(MAX_DOWN_S, 2.0 ** min(endpoint.failures - 1, 10))
        endpoint.down_until = asyncio.get_running_loop().time() + pause

    @staticmethod
    def hold(endpoint: Endpoint, seconds: float) -> None:
        """The server asked to be left alone for `seconds`."""
        until = asyncio.get_running_loop().time() + min(MAX_HOLD_S, seconds)
        endpoint.hold_until = max(endpoint.hold_until, until)


def check_url(url: str) -> None:
    """Raises ChatConfigError unless `url` is an http(s) URL that holds no secret."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ChatConfigError(f"base_urls: {url!r} is no URL ({error})") from None
    if parsed.userinfo or parsed.query:
        # The URL itself is not shown: it may hold the secret.
        raise ChatConfigError(
            f"base_urls: the URL for {parsed.host} holds a user name, password or query; give the key by api_key_env"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ChatConfigError(f"base_urls: {url!r} is no http(s) URL")
