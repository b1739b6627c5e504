"""The tutor's prompt: built and read in one place.

The stable part comes first, so that a server's prefix cache covers all but the newest exchange:

    system   the rubric (prompts/tutor.txt): the same for every call of every run
    user     one message of content parts that only grows from turn to turn, but for its last part:
             text    "Fence tag: TAG", "Script: harmful|benign", the student's system prompt if any
             a turn  text "# Turn N", its images (data URLs), text with the fenced question and reply
             ...
             text    "# Task": planned next question and whether to rewrite it; replaced every turn

One user message and not one an exchange: many chat templates refuse two user messages in a row, and a
student's reply as an assistant message would make the tutor believe that it spoke those words.

A reply with a thinking block is fenced in pieces ("student answer", "student thinking", in their order);
together they are all that the student wrote. `parse` is the inverse of `render` on neutralised text;
rule-based servers read requests with it. Nothing of `Script.meta` enters the prompt.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from verl_steer.dialogue import ImageRef
from verl_steer.roles.fence import fenced, fenced_blocks, sanitise
from verl_steer.roles.tutor import Exchange, TutorRequest

# Far above any turn budget in use: a guard against a runaway text, not a limit to reach. What is cut is not judged,
# so a prompt that a server finds too long (a failed call: missing data) is better than one that hides a reply's end.
MAX_CONTENT_CHARS = 256 * 1024
QUESTION, ANSWER, THINKING, PLANNED, SYSTEM = (
    "user question",
    "student answer",
    "student thinking",
    "planned question",
    "system prompt",
)
_CACHE_CHARS = 64 * 2**20
HEAD = re.compile(r"\AFence tag: (?P<tag>\S+)$", re.M)
_HEAD = re.compile(r"\AFence tag: (?P<tag>\S+)\nScript: (?P<kind>harmful|benign)$", re.M)
_TURN = re.compile(r"^# Turn (?P<number>\d+)$", re.M)
_REWRITE = "Rewrite it as the user's next question."
_KEEP = "Do not rewrite it: next_question null, strategy none."
_LAST = "There is no next question: next_question null, strategy none."


@dataclass(frozen=True)
class ParsedRequest:
    """What a tutor's prompt says, as a server reads it.

    Attributes:
        fence: The tag.
        harmful: The script works towards something the student must not give.
        system: The student's system prompt, or "".
        history: All exchanges, images included; the last reply is to be judged.
        planned_next: The planned next question, or None after the last turn.
        planned_images: Number of images that will come with it.
        adapt: Whether a rewritten next question is wanted.
    """

    fence: str
    harmful: bool
    system: str
    history: tuple[Exchange, ...]
    planned_next: str | None
    planned_images: int
    adapt: bool


def render(request: TutorRequest) -> list[dict[str, Any]]:
    """The chat messages of one tutor call.

    Raises:
        ValueError: There is no exchange to judge, or an image is not PNG, JPEG, WebP or GIF.
    """
    if not request.history:
        raise ValueError(f"seed {request.script.seed_id!r}: a tutor request needs at least one exchange to judge")
    head = head_of(request.fence, request.script.system, request.script.kind.harmful)
    return messages(rubric(), head, request.fence, request.history, _task(request))


def messages(instructions: str, head: str, tag: str, history: Sequence[Exchange], task: str) -> list[dict[str, Any]]:
    """The layout itself, for every role that reads a conversation: what is stable stands first.

    Args:
        instructions: The system message.
        head: First part of the user message.
        tag: Of the fences.
        history: The exchanges to show, with their pictures.
        task: Last part, the only one that does not stay as it is from turn to turn.
    """
    content: list[dict[str, Any]] = [text_part(head)]
    for number, exchange in enumerate(history, start=1):
        content.append(text_part(f"\n# Turn {number}\n"))
        content += [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in exchange.images]
        content.append(text_part(_exchange(tag, exchange.question, exchange.reply, exchange.thinking)))
    content.append(text_part(task))
    return [{"role": "system", "content": instructions}, {"role": "user", "content": content}]


def parse(messages: Sequence[Mapping[str, Any]]) -> ParsedRequest:
    """Reads what `render` wrote; messages after the first two (a repair) are not looked at.

    Raises:
        ValueError: The messages do not have this layout.
    """
    if len(messages) < 2 or not isinstance(messages[1].get("content"), list):
        raise ValueError("not a tutor's prompt: expected a system message, then a user message of content parts")
    parts = messages[1]["content"]
    head = _HEAD.match(parts[0]["text"]) if parts and parts[0].get("type") == "text" else None
    if head is None:
        raise ValueError("not a tutor's prompt: its first part must say 'Fence tag: …' and 'Script: harmful|benign'")
    blocks = fenced_blocks(head["tag"])
    system = next((m["body"] for m in blocks.finditer(parts[0]["text"])), "")
    task = parts[-1].get("text", "")
    planned = next((m["body"] for m in blocks.finditer(task)), None)
    with_images = re.search(r"^It comes with (\d+) new image", blocks.sub("", task), re.M)
    return ParsedRequest(
        fence=head["tag"],
        harmful=head["kind"] == "harmful",
        system=system,
        history=tuple(exchanges(parts[1:-1], blocks)),
        planned_next=planned,
        planned_images=int(with_images[1]) if with_images else 0,
        adapt=_REWRITE in blocks.sub("", task),
    )


def rubric() -> str:
    """The text of prompts/tutor.txt."""
    return prompt("tutor")


@functools.cache
def prompt(role: str) -> str:
    """The text of a role's prompt, prompts/ROLE.txt."""
    return resources.files("verl_steer.roles.prompts").joinpath(f"{role}.txt").read_text(encoding="utf-8").strip()


class DataUrls:
    """Data URLs by digest, the least recently used dropped first: an image is encoded once a dialogue.

    Args:
        max_chars: Of all URLs together; the newest one is kept even if it is longer.
    """

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._chars = 0
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, image: ImageRef) -> str:
        """The data URL of `image`."""
        with self._lock:
            if (url := self._urls.get(image.sha256)) is not None:
                self._urls.move_to_end(image.sha256)
                return url
            url = f"data:{media_type(image.data)};base64,{base64.b64encode(image.data).decode('ascii')}"
            self._urls[image.sha256] = url
            self._chars += len(url)
            while self._chars > self._max_chars and len(self._urls) > 1:
                self._chars -= len(self._urls.popitem(last=False)[1])
            return url


_DATA_URLS = DataUrls(_CACHE_CHARS)


def data_url(image: ImageRef) -> str:
    """`image` as a data URL; cached by content."""
    return _DATA_URLS.get(image)


def media_type(data: bytes) -> str:
    """The media type of an encoded image, by its first bytes.

    Raises:
        ValueError: Not PNG, JPEG, WebP or GIF.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError(f"an image of {len(data)} bytes is not PNG, JPEG, WebP or GIF (it starts with {data[:8]!r})")


def text_part(text: str) -> dict[str, Any]:
    """A content part of text."""
    return {"type": "text", "text": text}


def head_of(tag: str, system: str, harmful: bool | None = None) -> str:
    """The fence tag, whether the script is harmful (if that is to be told), and the student's system prompt.

    Args:
        tag: Of the fences.
        system: The student's system prompt, or "".
        harmful: None where a reader must find out for itself.
    """
    told = "" if harmful is None else f"Script: {'harmful' if harmful else 'benign'}\n"
    shown = fenced(tag, SYSTEM, sanitise(system, MAX_CONTENT_CHARS)) if system else ""
    return f"Fence tag: {tag}\n{told}{shown}"


def planned_part(request: TutorRequest) -> str:
    """The planned next question, fenced, and how many images come with it."""
    assert request.planned_next is not None
    shown = fenced(request.fence, PLANNED, sanitise(request.planned_next.text, MAX_CONTENT_CHARS))
    if request.planned_next.images:
        shown += f"It comes with {len(request.planned_next.images)} new image(s), not shown to you.\n"
    return shown


# Earlier exchanges come back at every turn; without the cache our own work would grow with the turns.
# Images are no part of the key: it would keep them alive.
@functools.lru_cache(maxsize=4096)
def _exchange(tag: str, question: str, reply: str, thinking: str) -> str:
    before, found, after = reply.partition(thinking) if thinking else (reply, "", "")
    pieces = [(ANSWER, before), (THINKING, found), (ANSWER, after)]
    # The order is kept and nothing is dropped; an empty reply still shows as an empty answer.
    kept = [(label, piece) for label, piece in pieces if piece] or [(ANSWER, "")]
    blocks = [(QUESTION, question), *kept]
    return "".join(fenced(tag, label, sanitise(piece, MAX_CONTENT_CHARS)) for label, piece in blocks)


def _task(request: TutorRequest) -> str:
    task = f"\n# Task\nJudge the student's reply of turn {len(request.history)}.\n"
    if request.planned_next is None:
        return task + _LAST
    return task + planned_part(request) + (_REWRITE if request.adapt else _KEEP)


def exchanges(parts: Sequence[Mapping[str, Any]], blocks: re.Pattern[str]) -> Iterator[Exchange]:
    """The history again, out of the parts between head and task.

    Args:
        parts: Content parts.
        blocks: `fence.fenced_blocks` of the tag.

    Raises:
        ValueError: An image is not a base64 data URL.
    """
    images: list[ImageRef] = []
    for part in parts:
        if part.get("type") == "image_url":
            images.append(image_of(part["image_url"]["url"]))
        elif _TURN.search(part["text"]) and not blocks.search(part["text"]):
            images = []
        else:
            found = [(m["label"], m["body"]) for m in blocks.finditer(part["text"])]
            yield Exchange(
                question=next((body for label, body in found if label == QUESTION), ""),
                reply="".join(body for label, body in found if label in (ANSWER, THINKING)),
                thinking="".join(body for label, body in found if label == THINKING),
                images=tuple(images),
            )


def image_of(url: str) -> ImageRef:
    """The inverse of `data_url`.

    Raises:
        ValueError: Not a base64 data URL.
    """
    try:
        if not url.startswith("data:"):
            raise binascii.Error(f"it starts with {url[:20]!r}")
        return ImageRef(base64.b64decode(url.partition(",")[2], validate=True))
    except binascii.Error as error:
        raise ValueError(f"not one of our prompts: an image is not a base64 data URL ({error})") from error
