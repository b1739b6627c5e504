"""An audit log: one line a call, saying what it cost and how it ended, and nothing of what it said.

JSON lines in one file a process (`audit-HOST-PID.jsonl`), mode 0600, rotated by size: at most 8 files of
64 MiB each. Prompts appear as a hash only, replies and error texts (which may quote a prompt) not at all.
"""

from __future__ import annotations

import functools
import json
import logging
import logging.handlers
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Unpack

from verl_steer.chat.client import CallOptions, Chat, Message
from verl_steer.chat.content import digest_of
from verl_steer.chat.outcome import ChatResult

MAX_BYTES, FILES = 64 * 2**20, 8


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """The standard library's rotation, on files that only their owner may read."""

    def _open(self) -> IO[Any]:  # type: ignore[override]
        return open(
            self.baseFilename, self.mode, encoding=self.encoding, opener=lambda path, flags: os.open(path, flags, 0o600)
        )


class AuditLog:
    """Writes the lines. Nothing that goes wrong in it stops a call: a full disk is reported on stderr.

    Args:
        directory: Made if it does not exist, mode 0700.
        max_bytes: Of one file.
        files: Kept at most, the one in use included.

    Raises:
        OSError: The folder or the file cannot be made.
    """

    def __init__(self, directory: str | Path, max_bytes: int = MAX_BYTES, files: int = FILES) -> None:
        folder = Path(directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        host = re.sub(r"[^A-Za-z0-9.-]", "-", platform.node()) or "host"
        self.path = folder / f"audit-{host}-{os.getpid()}.jsonl"
        self._handler = _PrivateFile(self.path, maxBytes=max_bytes, backupCount=files - 1, encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        """Appends one line."""
        line = json.dumps(entry, ensure_ascii=True)
        self._handler.emit(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Closes the file; a later line opens it again."""
        self._handler.close()


@functools.cache
def audit_log(directory: str) -> AuditLog:
    """This process's log in a folder: one file, whoever writes."""
    return AuditLog(directory)


class Audited:
    """`Chat` that logs every call of another one.

    Args:
        chat: Who answers.
        log: Where it is written.
    """

    def __init__(self, chat: Chat, log: AuditLog) -> None:
        self.model = chat.model
        self._chat = chat
        self._log = log

    async def complete(self, messages: Sequence[Message], **call: Unpack[CallOptions]) -> ChatResult:
        """As `ChatClient.complete`; a call that raises or is cancelled is logged too."""
        started, found = time.perf_counter(), None
        try:
            found = await self._chat.complete(messages, **call)
            return found
        finally:
            entry: dict[str, Any] = {"time": round(time.time(), 3), "model": self.model, "key": call["key"]}
            entry["attempt"] = call.get("attempt", 0)
            entry["prompt_sha256"] = digest_of(messages)
            entry |= _facts(found) if found is not None else {"outcome": "cancelled or raised"}
            entry.setdefault("latency_s", round(time.perf_counter() - started, 4))
            self._log.write(entry)

    async def aclose(self) -> None:
        """Closes the log and what is below."""
        self._log.close()
        await self._chat.aclose()


def _facts(found: ChatResult) -> dict[str, Any]:
    return {
        "outcome": found.outcome.value,
        "finish_reason": found.finish_reason[:40],
        "endpoint": found.endpoint,
        "requests": found.calls,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "latency_s": round(found.latency_s, 4),
        "waited_s": round(found.waited_s, 4),
    }
