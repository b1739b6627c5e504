"""A small OpenAI-compatible server in this process, for testing a tutor or judge set-up without a model.

    from verl_steer.testing.server import Completion, serve

    with serve(lambda body: Completion('{"safety": 10, …}'), models=["tutor"]) as server:
        ...  # talk to server.base_url; server.requests holds what came

A handler is a function of the request body; `faults.py` wraps one so that it misbehaves by plan. The server
is plain ASGI on uvicorn (extra `cpu`), on a free loopback port, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_START_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Completion:
    """A chat completion as a model would give it.

    Attributes:
        text: The message's content.
        finish_reason: As OpenAI names them: stop, length, content_filter.
        refusal: The message's `refusal`, or None.
        prompt_tokens: Of the usage.
        completion_tokens: Of the usage.
    """

    text: str
    finish_reason: str = "stop"
    refusal: str | None = None
    prompt_tokens: int = 1
    completion_tokens: int = 1


@dataclass(frozen=True)
class Wire:
    """An answer below the level of completions: what goes over the wire, right or wrong.

    Attributes:
        body: The body's bytes.
        status: HTTP status.
        headers: Beside content-length.
        delay_s: Seconds before the headers.
        chunk_delay_s: Seconds between the body's chunks, which are then 64 bytes long; 0: all at once.
        cut: Reset the connection: "before" any byte, "within" the body after half of it, or "" for not at all.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    cut: str = ""


Body = Mapping[str, Any]
Answered = Completion | Wire
Handler = Callable[[Body], Answered | Awaitable[Answered]]


@dataclass
class Server:
    """A running server.

    Attributes:
        base_url: E.g. `http://127.0.0.1:43521/v1`.
        requests: Bodies of the chat requests, in the order in which they came.
        headers: Their headers, in the same order; names in lower case.
        outstanding: Requests under way now.
        peak: The most that ever were under way at once.
    """

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    outstanding: int = 0
    peak: int = 0


@contextmanager
def serve(
    handler: Handler, models: Sequence[str] | Wire = ("tutor",), api_key: str | None = None, port: int = 0
) -> Iterator[Server]:
    """Serves `handler` on a loopback port until the block ends.

    Args:
        handler: Chat request body -> answer; may be `async`. An exception in it becomes a 500.
        models: Names for GET /v1/models, or its whole answer.
        api_key: If given, requests without it as bearer token get a 401.
        port: 0: a free one. Naming one lets a server come back after it was gone.

    Raises:
        RuntimeError: The server did not start.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        # Accepted connections inherit it; asyncio sets it itself only on sockets whose protocol number is spelt out. Without
        # it a body waits 40 ms behind its headers until the client acknowledges these.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        app = App(handler, models, api_key, server)
        config = uvicorn.Config(
            app, http=app.protocol, ws="none", lifespan="off", log_level="error", access_log=False, proxy_headers=False
        )
        runner = _Runner(config)
        thread = threading.Thread(target=runner.run, args=([listener],), name="verl-steer-test-server", daemon=True)
        thread.start()
        if not runner.running.wait(_START_TIMEOUT_S):
            raise RuntimeError("the test server did not start")
        try:
            yield server
        finally:
            runner.stop()
            thread.join(_START_TIMEOUT_S)


class _Runner(uvicorn.Server):
    """uvicorn's server, stopped by an event: its own loop looks for the end ten times a second only."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running = threading.Event()

    async def main_loop(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self.running.set()
        await self._stopped.wait()

    def stop(self) -> None:
        """Ends `run`, from another thread, without waiting for a request that hangs."""
        self.should_exit = self.force_exit = True
        self._loop.call_soon_threadsafe(self._stopped.set)


class App:
    """The ASGI application: POST /v1/chat/completions and GET /v1/models.

    Args:
        handler: Of the chat requests.
        models: The names it offers, or the answer to GET /v1/models.
        api_key: Required bearer token, or None.
        record: Where requests are noted.
    """

    def __init__(self, handler: Handler, models: Sequence[str] | Wire, api_key: str | None, record: Server) -> None:
        self._handler = handler
        if not isinstance(models, Wire):
            listed = [{"id": name, "object": "model"} for name in models]
            models = Wire(json.dumps({"object": "list", "data": listed}).encode())
        self._models = models
        self._api_key = api_key
        self._record = record
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}
        transports = self._transports

        class Protocol(H11Protocol):
            """uvicorn's protocol, remembering its transport: ASGI itself cannot reset a connection."""

            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                transports[transport.get_extra_info("peername")] = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                transports.pop(self.transport.get_extra_info("peername"), None)
                super().connection_lost(exc)

        self.protocol = Protocol

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if (data := await _read(receive)) is None:
            return
        if self._api_key is not None and headers.get("authorization") != f"Bearer {self._api_key}":
            await self._answer(scope, send, error(401, f"wrong key: {headers.get('authorization', '')}"))
            return
        match scope["method"], scope["path"]:
            case "GET", "/v1/models":
                await self._answer(scope, send, self._models)
            case "POST", "/v1/chat/completions":
                body = json.loads(data)
                self._record.requests.append(body)
                self._record.headers.append(headers)
                self._record.outstanding += 1
                self._record.peak = max(self._record.peak, self._record.outstanding)
                try:
                    await self._answer(scope, send, to_wire(await self._handle(body), str(body.get("model"))))
                finally:
                    self._record.outstanding -= 1
            case _:
                await self._answer(scope, send, error(404, "no such path"))

    async def _handle(self, body: Body) -> Answered:
        try:
            found = self._handler(body)
            return await found if inspect.isawaitable(found) else found
        except Exception as raised:  # the boundary to the user's handler, as in any server
            return error(500, f"{type(raised).__name__}: {raised}")

    async def _answer(self, scope: Any, send: Any, wire: Wire) -> None:
        await asyncio.sleep(wire.delay_s)
        if wire.cut == "before":
            return self._transports[tuple(scope["client"])].abort()
        headers = {"content-length": str(len(wire.body)), **wire.headers}
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": wire.status, "headers": raw})
        if wire.cut == "within":
            await send({"type": "http.response.body", "body": wire.body[: len(wire.body) // 2], "more_body": True})
            return self._transports[tuple(scope["client"])].abort()
        size = 64 if wire.chunk_delay_s else max(1, len(wire.body))
        for start in range(0, len(wire.body), size):
            await send({"type": "http.response.body", "body": wire.body[start : start + size], "more_body": True})
            await asyncio.sleep(wire.chunk_delay_s)
        await send({"type": "http.response.body", "body": b""})


def to_wire(answered: Answered, model: str = "tutor") -> Wire:
    """A completion as the bytes of a 200; a `Wire` as it is."""
    if isinstance(answered, Wire):
        return answered
    message = {"role": "assistant", "content": answered.text, "refusal": answered.refusal}
    payload = {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": answered.finish_reason}],
        "usage": {
            "prompt_tokens": answered.prompt_tokens,
            "completion_tokens": answered.completion_tokens,
            "total_tokens": answered.prompt_tokens + answered.completion_tokens,
        },
    }
    return Wire(json.dumps(payload).encode())


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Wire:
    """An error as OpenAI-compatible servers word it."""
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    return Wire(body, status, {"content-type": "application/json", **(headers or {})})


async def _read(receive: Any) -> bytes | None:
    """The request's body, or None if the client went away before its end."""
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        data += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(data)
