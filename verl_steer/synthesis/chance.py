"""Random choices that do not depend on the order in which answers come: each is keyed by (seed, row id, step)."""

from __future__ import annotations

import hashlib
import random


def chance(*key: object) -> random.Random:
    """A generator that is the same for the same key, in every process and on every machine."""
    digest = hashlib.sha256(repr(key).encode("utf-8", "surrogatepass")).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))
