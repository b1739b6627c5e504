"""Lists of messages, in the dialects that published files use, as exchanges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_steer.data.conversation import Said
from verl_steer.data.rows import RowError
from verl_steer.data.wording import split_placeholders
from verl_steer.dialogue import ImageRef

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


def exchanges(messages: Any, pictures: Sequence[ImageRef] = (), unmarked: bool = False) -> tuple[str, list[Said]]:
    """A system prompt ("" if there is none) and the exchanges.

    Args:
        messages: A list of {role, content} or {from, value}.
        pictures: The dialogue's pictures in order; each `<image>` of a user text takes one.
        unmarked: The form may do without `<image>`: all pictures belong to the first question then.

    Raises:
        RowError: Not such a list, a reply before a question, or pictures and placeholders that disagree.
    """
    if not isinstance(messages, (list, tuple)):
        raise RowError(f"messages must be a list, found {type(messages).__name__}")
    system = ""
    asked: list[tuple[str, int, str | None]] = []
    for n, message in enumerate(messages, 1):
        role, content = _read(message, n)
        marks, content = split_placeholders(content, f"message {n}")
        if marks and role != "user":
            raise RowError(f"message {n} of the {role} holds <image>; only the user shows pictures")
        if role == "system":
            if n != 1:
                raise RowError(
                    f"message {n} is a second system prompt" if system else f"message {n} is a late system prompt"
                )
            system = content
        elif role == "user":
            asked.append((content, marks, None))
        elif not asked or asked[-1][2] is not None:
            raise RowError(f"message {n} is a reply, but nobody asked")
        else:
            asked[-1] = (*asked[-1][:2], content)
    marked = sum(marks for _, marks, _ in asked)
    if unmarked and asked and marked == 0:
        asked[0] = (asked[0][0], len(pictures), asked[0][2])
    elif marked != len(pictures):
        raise RowError(f"the texts hold {marked} <image> for {len(pictures)} picture(s)")
    pool = iter(pictures)
    return system, [Said(text, tuple(next(pool) for _ in range(marks)), reply) for text, marks, reply in asked]


def _read(message: Any, n: int) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise RowError(f"message {n} must be {{role, content}}, found {type(message).__name__}")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if role not in _ROLES:
        raise RowError(f"message {n} has the role {role!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"message {n} has no text but {type(content).__name__}")
    return _ROLES[role], content
