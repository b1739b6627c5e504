"""Text on its way in: what a tokenizer would read as control or as media becomes words.

A question that quotes `<|im_start|>` or `<image>` would open a chat turn or ask for a picture that is not
there, and an SFT reply that does so would shift the loss mask. Everything else, thinking blocks included,
is kept: these are texts to learn from. Stricter rules for text that a model wrote in a run are in `chat.text`.
"""

from __future__ import annotations

import re

from verl_steer.data.rows import PLACEHOLDER, RowError
from verl_steer.whole import LONE_SURROGATE, writable

CONTROL = re.compile(r"<\|([^<>|\n]{1,80})\|>|<(image|video|audio)>")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def clean(text: str) -> str:
    """Control tokens as `(name)`, lone surrogates as U+FFFD, no white space at the ends; idempotent."""
    text = writable(text)
    # Until nothing changes: taking a token out of `<|a<image>|>` may leave another one.
    while (replaced := CONTROL.sub(lambda m: f"({m.group(1) or m.group(2)})", text)) != text:
        text = replaced
    return text.strip()


def cell(value: object) -> object:
    """A value for a CSV file: a text that a spreadsheet would work out as a formula gets an apostrophe before it.

    Ids, categories and names come out of data sets, and `=HYPERLINK(...)` is a valid one. Numbers stay.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def split_placeholders(text: str, where: str) -> tuple[int, str]:
    """Takes the `<image>` out of a text that marks its pictures so.

    Returns:
        How many there were, and the text without them.

    Raises:
        RowError: It asks for a video or for sound, which no split holds.
    """
    pieces = text.split("<image>")
    rest = "".join(pieces)
    if found := PLACEHOLDER.search(rest):
        raise RowError(f"{where} asks for {found.group()}; only pictures can be held")
    return len(pieces) - 1, rest


def check_characters(text: str) -> str:
    """The rule for every text of a row, also an empty one: a file can hold it.

    Raises:
        ValueError: With what is wrong; pydantic adds the field.
    """
    if LONE_SURROGATE.search(text):
        raise ValueError("holds half a character (a lone surrogate), which no file can hold")
    return text


def check_text(text: str) -> str:
    """The rule of the schemas: what `clean` gives, and not empty.

    Raises:
        ValueError: With what is wrong; pydantic adds the field.
    """
    if not check_characters(text):
        raise ValueError("is empty")
    if text[0].isspace() or text[-1].isspace():
        raise ValueError("begins or ends with white space; strip it")
    if found := CONTROL.search(text):
        raise ValueError(f"holds the control token {found.group()} as text; neutralise it first")
    return text
