"""The prompts of stages I and II: filled and read in one place.

Every role is asked alike, and the stable part comes first:

    system   the role's text, prompts/ROLE.txt
    user     text "Fence tag: TAG", "Role: ROLE"; the pictures (data URLs); one text with a fenced block for
             each field (text of a data set or of a model: data, never an instruction), then "# Task" and our own words

`read` is the inverse of `render` on neutralised text; rule-based servers read requests with it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from verl_steer.dialogue import ImageRef
from verl_steer.roles.fence import fenced, fenced_blocks, sanitise
from verl_steer.roles.layout import MAX_CONTENT_CHARS, data_url, image_of
from verl_steer.roles.tutor import Exchange

USER, ASSISTANT = "user turn", "assistant reply"
_HEAD = re.compile(r"\AFence tag: (?P<tag>\S+)\nRole: (?P<role>[a-z_]+)$", re.M)
_TASK = "# Task\n"


@dataclass(frozen=True)
class Fill:
    """What one call of a role says.

    Attributes:
        role: Name of its prompt text.
        tag: Of the fences.
        fields: (label, text) in order; labels are lower-case words, texts are untrusted.
        task: Our own words, after the fields.
        images: Pictures that the fields speak of.
    """

    role: str
    tag: str
    fields: tuple[tuple[str, str], ...]
    task: str
    images: tuple[ImageRef, ...] = ()

    def all(self, label: str) -> list[str]:
        """The texts of every field with this label, in order."""
        return [text for name, text in self.fields if name == label]

    def one(self, label: str) -> str:
        """The first text with this label, or ""."""
        return next(iter(self.all(label)), "")


def conversation(history: Sequence[Exchange]) -> tuple[tuple[str, str], ...]:
    """A conversation as fields, question and reply in turn."""
    return tuple(field for exchange in history for field in ((USER, exchange.question), (ASSISTANT, exchange.reply)))


def pictures(history: Sequence[Exchange]) -> tuple[ImageRef, ...]:
    """All pictures of a conversation, in order."""
    return tuple(image for exchange in history for image in exchange.images)


def render(fill: Fill) -> list[dict[str, Any]]:
    """The chat messages of one call.

    Raises:
        ValueError: A picture is not PNG, JPEG, WebP or GIF.
    """
    content: list[dict[str, Any]] = [_text(f"Fence tag: {fill.tag}\nRole: {fill.role}\n")]
    content += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in fill.images]
    blocks = "".join(fenced(fill.tag, label, sanitise(text, MAX_CONTENT_CHARS)) for label, text in fill.fields)
    content.append(_text(f"{blocks}\n{_TASK}{fill.task}"))
    return [{"role": "system", "content": prompt_text(fill.role)}, {"role": "user", "content": content}]


def read(messages: Sequence[Mapping[str, Any]]) -> Fill:
    """Reads what `render` wrote; messages after the first two (a repair) are not looked at.

    Raises:
        ValueError: The messages do not have this layout.
    """
    if len(messages) < 2 or not isinstance(messages[1].get("content"), list):
        raise ValueError("not a role's prompt: expected a system message, then a user message of content parts")
    first, *shown, last = messages[1]["content"]
    head = _HEAD.match(first.get("text", ""))
    if head is None:
        raise ValueError("not a role's prompt: its first part must say 'Fence tag: …' and 'Role: …'")
    blocks = fenced_blocks(head["tag"])
    fields = tuple((m["label"], m["body"]) for m in blocks.finditer(last["text"]))
    _, _, task = blocks.sub("", last["text"]).partition(_TASK)
    return Fill(head["role"], head["tag"], fields, task, tuple(image_of(part["image_url"]["url"]) for part in shown))


@functools.cache
def prompt_text(role: str) -> str:
    """The text of prompts/ROLE.txt."""
    return resources.files("verl_steer.roles.prompts").joinpath(f"{role}.txt").read_text(encoding="utf-8").strip()


def guidelines(path: str | Path | None) -> str:
    """The blue expert's guidelines: a file of the user's own, or ours (prompts/blue.txt).

    Raises:
        ValueError: The file is empty.
    """
    if path is None:
        return prompt_text("blue")
    text = Path(path).read_text(encoding="utf-8").strip()
    if not text:
        raise ValueError(f"{path}: the guidelines of the blue expert are empty")
    return text


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
