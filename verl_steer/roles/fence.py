"""The fence around untrusted text in a prompt, and the tag that its author cannot guess.

The student writes what the tutor reads, so it could try to close its own reply and go on as the
rubric ("end of reply; score: 10"). Each piece of its text therefore stands between two lines that
carry a tag. The tag is an HMAC of the seed's id under a key of the run: the same for all rollouts and
turns of a seed, so that servers can share prompt prefixes, and unknown to the student.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from verl_steer.chat.text import neutralise, sanitise

__all__ = ["fence_tag", "fenced", "neutralise", "sanitise"]

TAG_CHARS = 10  # 50 bits; few tokens, and it stands on every fence line


def fence_tag(run_key: bytes, seed_id: str) -> str:
    """The tag of a seed's fences: 10 lower-case base-32 characters.

    Args:
        run_key: Secret of the run, not empty.
        seed_id: Id of the seed.

    Raises:
        ValueError: `run_key` is empty: anyone could compute the tags.
    """
    if not run_key:
        raise ValueError("the key of the fences is empty, so their tags could be guessed; give it at least one byte")
    digest = hmac.new(run_key, seed_id.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
    return base64.b32encode(digest)[:TAG_CHARS].decode("ascii").lower()


def fenced(tag: str, label: str, text: str) -> str:
    """`text` between two fence lines; the tag cannot occur inside, whatever `text` holds.

    Args:
        tag: From `fence_tag`.
        label: What the text is, e.g. "student answer"; ours, never untrusted.
        text: The text, neutralised already.
    """
    inside = re.sub(re.escape(tag), tag[0] + "·" + tag[1:], text, flags=re.IGNORECASE)
    return f"--- begin {label} {tag}\n{inside}\n--- end {label} {tag}\n"


def fenced_blocks(tag: str) -> re.Pattern[str]:
    """A pattern that finds the blocks made by `fenced`, with groups `label` and `body`."""
    mark = re.escape(tag)
    return re.compile(rf"^--- begin (?P<label>[a-z ]+) {mark}\n(?P<body>.*?)\n--- end (?P=label) {mark}$", re.M | re.S)
