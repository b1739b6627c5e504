"""Connections to a model's servers, at a cost a request that does not grow with their number.

httpx's own pool looks at every connection whenever a request starts or ends, and for each idle one at all
the others: with 256 calls under way that is most of what a training process does. Here every connection is a
transport of its own; a request takes the one that was used last, or opens another.
"""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import httpx

_Origin = tuple[str, str, int | None]


class Pool(httpx.AsyncBaseTransport):
    """A transport for `httpx.AsyncClient`; how many requests run at once is up to the caller.

    Proxies come from the environment, as with httpx's own transport.

    Args:
        verify: TLS settings, shared by all connections.
        keepalive_s: A connection that was idle for longer is not used again.
    """

    def __init__(self, verify: ssl.SSLContext, keepalive_s: float) -> None:
        self._verify = verify
        self._keepalive_s = keepalive_s
        self._idle: dict[_Origin, deque[tuple[float, httpx.AsyncHTTPTransport]]] = defaultdict(deque)
        self._busy: set[httpx.AsyncHTTPTransport] = set()

    @property
    def connections(self) -> int:
        """Connections that are in use or kept."""
        return len(self._busy) + sum(map(len, self._idle.values()))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends `request` over a connection that nobody else uses until the response is closed."""
        origin = (request.url.scheme, request.url.host, request.url.port)
        await self._close_old(origin)
        kept = self._idle[origin]
        transport = kept.pop()[1] if kept else self._open(request.url)
        self._busy.add(transport)
        try:
            response = await transport.handle_async_request(request)
        except BaseException:  # a cancelled task included: the connection is in an unknown state
            await self.discard(transport)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Lent(response.stream, self, origin, transport)
        return response

    def give_back(self, origin: _Origin, transport: httpx.AsyncHTTPTransport) -> None:
        """The response is closed; the transport knows itself whether its connection can be used again."""
        if transport in self._busy:  # else the pool was closed meanwhile
            self._busy.discard(transport)
            self._idle[origin].append((time.monotonic(), transport))

    async def discard(self, transport: httpx.AsyncHTTPTransport) -> None:
        """Closes a connection that was in use and is in an unknown state."""
        self._busy.discard(transport)
        await transport.aclose()

    async def aclose(self) -> None:
        """Closes every connection, those in use included."""
        transports = [*self._busy, *(transport for kept in self._idle.values() for _, transport in kept)]
        self._busy.clear()
        self._idle.clear()
        for transport in transports:
            await transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    def _open(self, url: httpx.URL) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=self._keepalive_s)
        return httpx.AsyncHTTPTransport(verify=self._verify, limits=limits, proxy=proxy_for(url))

    async def _close_old(self, origin: _Origin) -> None:
        """Those at the bottom of the stack: after a peak they would stay open for ever."""
        kept, until = self._idle[origin], time.monotonic() - self._keepalive_s
        while kept and kept[0][0] < until:
            await kept.popleft()[1].aclose()


class _Lent(httpx.AsyncByteStream):
    """A response's body; closing it gives the connection back."""

    def __init__(
        self, body: httpx.AsyncByteStream, pool: Pool, origin: _Origin, transport: httpx.AsyncHTTPTransport
    ) -> None:
        self._body, self._pool, self._origin, self._transport = body, pool, origin, transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._body:
            yield piece

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        except BaseException:  # cancelled within: its one connection may count as taken for ever
            await self._pool.discard(self._transport)
            raise
        self._pool.give_back(self._origin, self._transport)


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy that the environment names for `url` (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), or None."""
    proxies = urllib.request.getproxies()
    if not proxies or urllib.request.proxy_bypass(url.host):
        return None
    found = proxies.get(url.scheme) or proxies.get("all")
    return f"http://{found}" if found and "://" not in found else found
