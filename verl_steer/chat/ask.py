"""A question with a typed answer: ask, read strictly, show the model its error once, else give up.

One repair retry, because a second look at the error helps a good model and no number of looks helps a
bad one; after it the outcome is `unparseable`, which is missing data and not an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from verl_steer.chat.client import Chat, Message
from verl_steer.chat.deadline import Deadline
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.chat.structured import ReplyError, StrictReply, parse_reply, schema_of
from verl_steer.chat.text import sanitise

T = TypeVar("T", bound=StrictReply)

_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What came back.

    Attributes:
        value: The reply; there if the outcome is OK, and also if the model refused and still gave one.
        chat: The outcome and the cost of both calls together.
        repair: How the repair call ended, where there was one: a value that kept its flaw because no repair came may be
            mended another day.
    """

    value: T | None
    chat: ChatResult
    repair: Outcome | None = None


async def ask(
    client: Chat,
    messages: Sequence[Message],
    reply_type: type[T],
    *,
    key: str,
    deadline_s: float,
    max_tokens: int,
    temperature: float = 0.0,
    flaw: Callable[[T], str | None] = lambda reply: None,
    within: Deadline | None = None,
) -> Answer[T]:
    """Asks for a `reply_type`.

    Args:
        client: Whom to ask.
        messages: The prompt.
        reply_type: What the reply is; its validators may object to values, and their message goes to the model.
        key: As in `ChatClient.complete`.
        deadline_s: Seconds for both calls together; see `ChatClient.complete` for what counts.
        max_tokens: Of each reply.
        temperature: Of the sampling.
        flaw: Says what is wrong with a valid reply that is worth the repair, or None. Unlike an invalid reply it
            is not lost: if the repair brings nothing valid, it stands, and if the repair has the flaw too, the
            caller gets that one. Which part of it is unusable, the caller knows.
        within: The caller's own deadline.

    Raises:
        ChatConfigError: As `ChatClient.complete`.
        ModelOutage: Likewise.
    """
    schema = schema_of(reply_type)

    async def call(prompt: Sequence[Message], attempt: int, left_s: float) -> ChatResult:
        return await client.complete(
            prompt,
            key=key,
            deadline_s=left_s,
            max_tokens=max_tokens,
            temperature=temperature,
            schema=schema,
            attempt=attempt,
            within=within,
        )

    first = await call(messages, 0, deadline_s)
    if first.outcome is not Outcome.OK:
        return Answer(_given_all_the_same(first, reply_type), first)
    value, error = _read(first, reply_type)
    if value is not None and not (error := flaw(value) or ""):
        return Answer(value, first)
    left_s = deadline_s - (first.latency_s - first.waited_s)
    second = await call([*messages, *_repair(first, error)], 1, left_s)
    both = _sum(first, second)
    mended, error_after = _read(second, reply_type) if second.outcome is Outcome.OK else (None, second.detail)
    if mended is not None:
        return Answer(mended, both, second.outcome)
    if value is not None:
        kept = replace(both, outcome=Outcome.OK, detail=f"{error}; not mended: {error_after}")
        return Answer(value, kept, second.outcome)
    if second.outcome is Outcome.OK:
        return Answer(None, replace(both, outcome=Outcome.UNPARSEABLE, detail=error_after), second.outcome)
    detail = f"{second.detail}; the reply before was not accepted: {error}"
    return Answer(_given_all_the_same(second, reply_type), replace(both, detail=detail), second.outcome)


def _read(result: ChatResult, reply_type: type[T]) -> tuple[T | None, str]:
    try:
        return parse_reply(result.text, reply_type), ""
    except ReplyError as error:
        cut = " (the reply was cut at its length limit)" if result.finish_reason == "length" else ""
        return None, f"{error}{cut}"


def _given_all_the_same(result: ChatResult, reply_type: type[T]) -> T | None:
    return _read(result, reply_type)[0] if result.outcome is Outcome.REFUSED and result.text else None


def _repair(result: ChatResult, error: str) -> list[Message]:
    shown = sanitise(result.text, _SHOWN_CHARS).strip() or "(empty)"
    request = f"Your reply was not accepted: {sanitise(error, 500)}. Reply again with one JSON object and nothing else."
    return [{"role": "assistant", "content": shown}, {"role": "user", "content": request}]


def _sum(first: ChatResult, second: ChatResult) -> ChatResult:
    return replace(
        second,
        calls=first.calls + second.calls,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
        latency_s=first.latency_s + second.latency_s,
        waited_s=first.waited_s + second.waited_s,
    )
