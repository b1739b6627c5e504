"""What a call asks, as a hash: what journal, cache and audit log know a prompt by."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from verl_steer.chat.client import CallOptions
from verl_steer.chat.outcome import ChatResult, Outcome

#: The model has spoken: asking again says the same or draws again. Everything else is no answer, and is not kept.
FINAL = frozenset({Outcome.OK, Outcome.REFUSED, Outcome.BLOCKED})


def digest_of(content: Any) -> str:
    """SHA-256 of JSON-like data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def sampling_of(call: CallOptions) -> list[Any]:
    """What of a call, beside model and messages, decides its answer; its seed is left out (see `Cached`, `Journaled`)."""
    schema = call.get("schema")
    return [call["max_tokens"], call.get("temperature", 0.0), schema.schema if schema is not None else None]


def result_to_dict(found: ChatResult) -> dict[str, Any]:
    """What is kept of a final answer: not its latency, and not its requests, which nobody sends again."""
    return {
        "outcome": found.outcome.value,
        "text": found.text,
        "finish_reason": found.finish_reason,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "detail": found.detail,
    }


def result_from_dict(kept: dict[str, Any]) -> ChatResult:
    """The answer again: no request was sent for it (`calls` is 0), its tokens were spent when it came.

    Raises:
        KeyError, TypeError, ValueError: It is not what `result_to_dict` wrote.
    """
    return ChatResult(**{**kept, "outcome": Outcome(kept["outcome"])})
