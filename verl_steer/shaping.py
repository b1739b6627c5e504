"""Format and repetition shaping of the reference code; off in the paper's presets."""

from __future__ import annotations

import re

_TAGS = {name: re.compile(f"</?{name}>") for name in ("think", "answer")}


def has_exact_format(reply: str) -> bool:
    """True if the reply holds exactly one thinking and one answer block, each opened before it is closed."""
    return all(tags.findall(reply) == [f"<{name}>", f"</{name}>"] for name, tags in _TAGS.items())


def repeated_trigrams(reply: str) -> float:
    """Share of word 3-grams that have occurred before in the reply, in [0, 1)."""
    words = reply.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0
