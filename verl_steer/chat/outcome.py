"""How a model call ends, and what it brings back.

A call to a model fails in ways that are no property of the text it was asked about: those must never
look like an answer. So a call does not raise and does not return a string; it returns a result whose
outcome is one of six, and only `ok` is an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """How a model call ended."""

    OK = "ok"
    FAILED = "failed"  # transport or server error after all retries
    TIMEOUT = "timeout"  # the deadline of the call or of the dialogue passed
    UNPARSEABLE = "unparseable"  # a reply came, but not a valid one, also after the repair retry
    REFUSED = "refused"  # the model declined to answer
    BLOCKED = "blocked"  # a content filter of the server cut the reply

    @property
    def transient(self) -> bool:
        """Whether it says nothing of the model: the same call may end otherwise another day."""
        return self in (Outcome.FAILED, Outcome.TIMEOUT)


@dataclass(frozen=True)
class ChatResult:
    """One chat completion, retries included.

    Attributes:
        outcome: OK, FAILED, TIMEOUT, REFUSED or BLOCKED.
        text: What the model wrote; "" if nothing usable came. A refused or blocked reply may have text.
        finish_reason: The server's, e.g. "stop" or "length"; "" if it said none.
        calls: HTTP requests sent; 0 if the reply comes from a journal or a cache.
        prompt_tokens: As the server counted them, 0 if it did not say.
        completion_tokens: Likewise.
        latency_s: Wall seconds, waiting included.
        detail: What went wrong, for a person; never holds a secret. "" if nothing did.
        waited_s: Of the latency, what the deadline did not count: our own queue, an outage.
        endpoint: The base URL that was asked last; "" if none was.
        curable: Of a failure: whether the same call may succeed another day; false where the server refused this very
            request (a 4xx: too long a prompt, a picture it cannot read).
    """

    outcome: Outcome
    text: str = ""
    finish_reason: str = ""
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = field(default=0.0, compare=False)
    detail: str = ""
    waited_s: float = field(default=0.0, compare=False)
    endpoint: str = field(default="", compare=False)
    curable: bool = field(default=True, compare=False)
