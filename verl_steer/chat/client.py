"""The one way to talk to a model: OpenAI-compatible chat completions over HTTP.

A tutor is thousands of concurrent calls a step, and what goes wrong there must neither stop training
nor become a number. So a call never raises for what a model or a network does (but for an outage of every
server, where that is asked for), has one deadline over all its attempts, and is retried in this one layer
only: retries of several layers multiply. `docs/tutor.md` walks through a call.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Required, TypedDict, Unpack

import httpx

from verl_steer.chat.deadline import Deadline
from verl_steer.chat.dispatch import Call, Dispatcher, Retries
from verl_steer.chat.endpoints import CONNECT_TIMEOUT_S, ChatConfigError, Endpoints, check_url
from verl_steer.chat.outage import Outage
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.chat.pool import Pool
from verl_steer.chat.structured import JsonSchema, dialects
from verl_steer.chat.wire import Fault, Reply, list_models

Message = Mapping[str, Any]


class CallOptions(TypedDict, total=False):
    """The keyword arguments of `ChatClient.complete`, where their meaning stands."""

    key: Required[str]
    deadline_s: Required[float]
    max_tokens: Required[int]
    temperature: float
    schema: JsonSchema | None
    attempt: int
    within: Deadline | None


class Chat(Protocol):
    """What a caller sees of a model: the client itself, or layers around it (journal, cache, audit log)."""

    model: str

    async def complete(self, messages: Sequence[Message], **call: Unpack[CallOptions]) -> ChatResult:
        """As `ChatClient.complete`."""
        ...

    async def aclose(self) -> None:
        """Releases what is held."""
        ...


class ChatClient:
    """A pool of connections to one model, served at one or several URLs. One for each model and process.

    Args:
        model: Name under which the servers offer the model.
        base_urls: E.g. `http://tutor-0:8000/v1`; all serve the same model.
        max_concurrency: Requests under way at once: this process's share of the job's limit. What an
            endpoint gets shrinks below it when the endpoint says that it is overloaded.
        attempts: HTTP requests a call may cost. Not counted: answers that say "not now" (429, 502, 503, 504,
            529), which the deadline bounds; going over to another URL because one cannot be reached; learning a
            server's dialect of structured output.
        api_key_env: *Name* of the environment variable that holds the API key; read at each call.
        structured_output: auto, response_format, structured_outputs, guided_json or none.
        attempt_timeout_s: Seconds of one attempt, or None: only the call's deadline counts. With a
            limit, a server that hangs costs one attempt and not the call.
        backoff_s: Mean pause before the first retry, roughly; it doubles with each further one.
        max_reply_bytes: A longer HTTP body is not read.
        outage_s: Seconds to wait while no endpoint serves anybody; then calls raise. 0: do not wait, an
            unreachable model is a failed call.

    Raises:
        ChatConfigError: No URL, or one that is not http(s) or holds a user name, password, query or fragment.
    """

    def __init__(
        self,
        model: str,
        base_urls: Sequence[str],
        *,
        max_concurrency: int,
        attempts: int = 4,
        api_key_env: str | None = None,
        structured_output: str = "auto",
        attempt_timeout_s: float | None = None,
        backoff_s: float = 0.5,
        max_reply_bytes: int = 2**20,
        outage_s: float = 0.0,
    ) -> None:
        for url in base_urls:
            check_url(url)
        if not base_urls or max_concurrency < 1 or attempts < 1:
            raise ChatConfigError("a client needs at least one base URL, one concurrent call and one attempt")
        self.model = model
        self._endpoints = Endpoints(base_urls, max_concurrency)
        self._retries = Retries(attempts, backoff_s, attempt_timeout_s)
        self._max_concurrency = max_concurrency
        self._api_key_env = api_key_env
        self._dialects = dialects(structured_output)
        self._max_reply_bytes = max_reply_bytes
        self._outage_s = outage_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx.AsyncClient
        self._dispatcher: Dispatcher

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        key: str,
        deadline_s: float,
        max_tokens: int,
        temperature: float = 0.0,
        schema: JsonSchema | None = None,
        attempt: int = 0,
        within: Deadline | None = None,
    ) -> ChatResult:
        """Asks for one completion.

        Args:
            messages: OpenAI chat messages.
            key: Stem of the model's seed and of the retries' jitter: the same key, the same choices.
            deadline_s: Seconds for the model: attempts and the pauses between them. Waiting for a free slot of
                our own, and for the end of an outage, is not counted.
            max_tokens: Length of the reply.
            temperature: Of the sampling.
            schema: The reply should follow it; a hint to the server, see `structured.py`.
            attempt: Which call with this key it is (a repair is another one); the layers' business.
            within: The caller's own deadline; it stands still likewise.

        Raises:
            ChatConfigError: The API key's environment variable is not set, or holds no possible key; far too
                many calls wait.
            ModelOutage: No endpoint served for `outage_s`.
        """
        started = time.perf_counter()
        secret = self._secret()
        headers = {"content-type": "application/json", "accept": "application/json"}
        if secret:
            headers["authorization"] = f"Bearer {secret}"
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed_of(key),
        }
        self._bind_loop()
        deadline = Deadline(deadline_s, within)
        call = Call(body, schema, key, headers, secret, deadline, self._retries.attempt_timeout_s or deadline_s)
        try:
            async with deadline:
                await asyncio.sleep(0)  # with no time left, nothing is sent
                found = await self._dispatcher.run(call)
        except TimeoutError:
            detail = f"no answer within {deadline_s:.3g} s" + (f"; before: {call.detail}" if call.detail else "")
            found = Fault(detail, retry=False, outcome=Outcome.TIMEOUT)
        reply = found if isinstance(found, Reply) else Reply(found.outcome, "", "", 0, 0, found.detail)
        return ChatResult(
            reply.outcome,
            reply.text,
            reply.finish_reason,
            call.sent,
            reply.prompt_tokens,
            reply.completion_tokens,
            time.perf_counter() - started,
            reply.detail,
            call.waited_s,
            call.endpoint,
            curable=not isinstance(found, Fault) or found.retry or found.outcome is Outcome.TIMEOUT,
        )

    async def models(self, timeout_s: float = CONNECT_TIMEOUT_S) -> dict[str, list[str] | str]:
        """Asks every URL which models it offers (GET /models).

        Returns:
            Base URL -> the names, empty if the server has no such list; or a sentence saying what is wrong.

        Raises:
            ChatConfigError: As `complete`.
        """
        secret = self._secret()
        self._bind_loop()
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        urls = [endpoint.url for endpoint in self._endpoints]
        key_origin = f"from {self._api_key_env}" if self._api_key_env else "none is configured: set api_key_env"
        asked = (list_models(self._http, url, headers, timeout_s, key_origin, secret) for url in urls)
        return dict(zip(urls, await asyncio.gather(*asked), strict=True))

    async def aclose(self) -> None:
        """Closes the connections; the client can be used again after it."""
        if self._loop is asyncio.get_running_loop():
            await self._http.aclose()
        self._loop = None

    # -- settings ----------------------------------------------------------------------------------

    def _bind_loop(self) -> None:
        """Connections and queues belong to one event loop; a new loop gets new ones."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),  # the rest is under the deadline
            # uvicorn (vLLM, SGLang) closes idle connections after 5 s: be first, or a request meets the close.
            transport=Pool(_tls(), keepalive_s=4.0),
            headers={"accept-encoding": "identity"},  # no decompression bombs
        )
        self._endpoints.forget()
        outage = Outage(self.model, self._outage_s) if self._outage_s else None
        self._dispatcher = Dispatcher(
            self._http, self._endpoints, self._retries, self._dialects, outage, self._max_reply_bytes
        )
        self._loop = loop

    def _secret(self) -> str:
        if self._api_key_env is None:
            return ""
        secret = os.environ.get(self._api_key_env, "").strip()
        if not secret or not secret.isascii() or not secret.isprintable():
            state = "holds characters that no API key has" if secret else "is not set, or empty,"
            raise ChatConfigError(f"api_key_env={self._api_key_env}: this environment variable {state} in this process")
        return secret


@functools.cache
def _tls() -> ssl.SSLContext:
    """httpx's own context, read once a process: it costs some 40 ms."""
    return httpx.create_ssl_context()


def seed_of(key: str) -> int:
    """A 31-bit seed from a key: every server accepts it, and it is the same on every machine."""
    return (
        int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")
        & 0x7FFFFFFF
    )
