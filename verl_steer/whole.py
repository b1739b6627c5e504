"""Files that appear whole or not at all: written beside their place, then renamed into it. And what a text file can hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: No character at all: JSON's escapes can write it, so a model's text may hold it; UTF-8 cannot.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def writable(text: str) -> str:
    """`text` as a file can hold it: a lone surrogate becomes U+FFFD, so that one odd reply stops nothing."""
    return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; it takes the place of `path` at the end, and goes if anything fails.

    Args:
        path: The file to be; its folder exists.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text, UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
