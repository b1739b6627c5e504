"""One HTTP request to an OpenAI-compatible server, and what its answer means.

Everything a server can send back is sorted here into a `Reply` or a `Fault`, so that the client above
decides on retries without looking at status codes, and nothing below it raises for what a network does.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import httpx

from verl_steer.chat.outcome import Outcome
from verl_steer.chat.text import sanitise

# "Not now": too many requests, or a gateway whose server is busy or starting. They speak of the server alone.
OVERLOAD_STATUS = frozenset({429, 502, 503, 504, 529})
RETRYABLE_STATUS = frozenset({408, 409, 425, 429})  # and all 5xx
# Key, credit, model: whoever asks is told the same. Every other 4xx speaks of the request and is final.
LOCKED_OUT_STATUS = frozenset({401, 402, 404})
_EXCERPT_CHARS = 300
_NAME_CHARS = 1000
# What servers without keys are given (EMPTY, none, token-abc123) is shorter than any key, and may be a word of the reply.
_KEY_CHARS = 16
# How servers word that they do not know, or cannot compile, a request for structured output.
_STRUCTURE_WORDS = ("response_format", "json_schema", "structured_output", "guided_json", "guided decoding", "grammar")
_FILTER_WORDS = ("content_filter", "content_policy", "content_management_policy", "responsibleaipolicyviolation")


@dataclass(frozen=True)
class Reply:
    """A chat completion.

    Attributes:
        outcome: OK, REFUSED (the message has a `refusal`) or BLOCKED (finish reason `content_filter`).
        text: The message's content, "" if it has none.
        finish_reason: "" if the server gave none.
        prompt_tokens: 0 if the server did not say.
        completion_tokens: Likewise.
        detail: The refusal's text.
    """

    outcome: Outcome
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    detail: str = ""


@dataclass(frozen=True)
class Fault:
    """A request without a completion.

    Attributes:
        detail: What happened, for a person; untrusted text is neutralised, the API key taken out.
        retry: Whether another attempt may succeed.
        outcome: FAILED, or BLOCKED where a filter refused the prompt.
        retry_after_s: How long the server asks to be left alone, or None.
        unreachable: No connection came about: another URL may serve at once.
        overloaded: The server says "not now"; nothing was wrong with the request.
        locked_out: The server does not accept the key, or does not have the model (any more).
        structure_rejected: The server objects to the fields that ask for structured output.
    """

    detail: str
    retry: bool
    outcome: Outcome = Outcome.FAILED
    retry_after_s: float | None = None
    unreachable: bool = False
    overloaded: bool = False
    locked_out: bool = False
    structure_rejected: bool = False


async def post(
    http: httpx.AsyncClient, url: str, headers: dict[str, str], body: bytes, max_bytes: int, secret: str
) -> Reply | Fault:
    """Sends one chat completion request.

    Args:
        http: The pool.
        url: Full URL of the chat completions endpoint.
        headers: Of the request.
        body: The JSON request.
        max_bytes: A longer reply is not read to its end: it is a fault.
        secret: The API key, "" if there is none; taken out of whatever comes back, but for a completion if it is a
            placeholder.
    """
    try:
        async with http.stream("POST", url, headers=headers, content=body) as response:
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > max_bytes:
                    return Fault(f"{url} sent more than {max_bytes} bytes", retry=True)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        return Fault(f"no connection to {url}: {_say(error, secret)}", retry=True, unreachable=True)
    except httpx.HTTPError as error:
        return Fault(f"the connection to {url} broke: {_say(error, secret)}", retry=True)
    # Before anything reads it: servers do quote a key, and a cut could leave half of one.
    struck = _struck(bytes(data), secret)
    if response.status_code != 200:
        return _status_fault(response, struck, url)
    if len(secret) >= _KEY_CHARS:
        return read_completion(struck, url)
    found = read_completion(bytes(data), url)
    return found if isinstance(found, Reply) else read_completion(struck, url)


def read_completion(data: bytes, url: str) -> Reply | Fault:
    """Reads the body of a 200; whatever is not a chat completion is a fault worth a retry."""
    try:
        payload = json.loads(data.decode("utf-8"))
        choice = payload["choices"][0]
        message = choice["message"]
        text = _content(message.get("content"))
        finish = choice.get("finish_reason") or ""
        refusal = message.get("refusal") or ""
        usage = payload.get("usage") or {}
        tokens = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"[:120]
        return Fault(f"{url} sent no chat completion ({why}): {_excerpt(data)}", retry=True)
    outcome, detail = Outcome.OK, ""
    if finish == "content_filter":
        outcome, detail = Outcome.BLOCKED, "the server's content filter cut the reply"
    elif refusal:
        outcome, detail = Outcome.REFUSED, sanitise(str(refusal), _EXCERPT_CHARS)
    return Reply(outcome, text, str(finish), tokens[0], tokens[1], detail)


async def list_models(
    http: httpx.AsyncClient, url: str, headers: dict[str, str], timeout_s: float, key_origin: str, secret: str
) -> list[str] | str:
    """The models that a base URL offers ([] if it has no such list), or a sentence saying what is wrong.

    Args:
        http: The pool.
        url: The base URL.
        headers: With the API key.
        timeout_s: Seconds to wait.
        key_origin: Where the API key comes from, for the sentence.
        secret: As in `post`; a placeholder may be part of a model's name.
    """
    try:
        async with asyncio.timeout(timeout_s):
            response = await http.get(f"{url}/models", headers=headers)
    except TimeoutError:
        return f"{url} did not answer within {timeout_s:.3g} s; is the server up?"
    except httpx.HTTPError as error:
        return f"{url} cannot be reached ({_say(error, secret)}); is the server up?"
    if response.status_code in (401, 403):
        return f"{url} does not accept the API key ({key_origin})"
    if response.status_code in (404, 405, 501):
        return []
    if response.status_code != 200:
        return f"{url}/models answered {response.status_code}"
    data = response.content if len(secret) < _KEY_CHARS else _struck(response.content, secret)
    try:
        return [sanitise(str(entry["id"]), _NAME_CHARS) for entry in json.loads(data)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{url}/models did not answer with a list of models; is this an OpenAI-compatible server?"


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part["text"]) for part in content if part.get("type") == "text")


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _status_fault(response: httpx.Response, data: bytes, url: str) -> Fault:
    status, lowered = response.status_code, data[:20_000].decode("utf-8", "replace").lower()
    detail = f"{url} answered {status}: {_excerpt(data)}"
    if status == 404:
        detail += " (a base URL usually ends in /v1; the model's name must be one that the server offers)"
    if status in (400, 403) and any(word in lowered for word in _FILTER_WORDS):
        return Fault(detail, retry=False, outcome=Outcome.BLOCKED)
    return Fault(
        detail,
        retry=status in RETRYABLE_STATUS | LOCKED_OUT_STATUS or status >= 500,
        retry_after_s=retry_after(response.headers.get("retry-after")),
        overloaded=status in OVERLOAD_STATUS,
        locked_out=status in LOCKED_OUT_STATUS,
        structure_rejected=status in (400, 422) and any(word in lowered for word in _STRUCTURE_WORDS),
    )


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date; None if absent or not understood."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # not NaN


def strike(text: str, secret: str) -> str:
    """`text` with `***` for every `secret`, also as JSON may spell it: `\\/`, `\\u002f`, and JSON within JSON.

    Args:
        text: What came back.
        secret: ASCII, or "" if there is none.
    """
    if not secret:
        return text
    # Seven backslashes: three levels of JSON. More would let a reply of nothing but backslashes take its time.
    signs = (rf"(?:\\{{0,7}}{re.escape(sign)}|\\{{1,7}}(?i:u{ord(sign):04x}))" for sign in secret)
    return re.sub("".join(signs), "***", text)


def _struck(data: bytes, secret: str) -> bytes:
    return strike(data.decode("latin-1"), secret).encode("latin-1")  # a key is ASCII; every other byte stays as it is


def _say(error: Exception, secret: str) -> str:
    """An error of the network, which may quote what the server sent."""
    return sanitise(strike(f"{type(error).__name__} {error}".strip(), secret), _EXCERPT_CHARS)


def _excerpt(data: bytes) -> str:
    return sanitise(data[:20_000].decode("utf-8", "replace"), _EXCERPT_CHARS)
