"""The journal: what a long run has been answered already, so that the same command goes on where it stopped.

One JSON line a final answer, keyed by (row, step, attempt): row is the caller's key, step names what the
call was for, attempt tells a repair from the first try. It works at any temperature, because it replays
what was said and does not assume that it would be said again.

Durability: a line is handed to the operating system in one write as soon as the answer is there, so it
survives the death of the process; it is forced to disk at most once a second and at the end, so a power cut
costs a second's answers. A torn last line is cut off at the next start. One process writes at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from verl_steer.chat.client import CallOptions, Chat, Message
from verl_steer.chat.content import FINAL, digest_of, result_from_dict, result_to_dict, sampling_of
from verl_steer.chat.outcome import ChatResult

SYNC_EVERY_S = 1.0
Place = tuple[str, str, int]  # row, step, attempt

log = logging.getLogger(__name__)


class JournalError(RuntimeError):
    """The journal cannot be used; the message names file and line."""


class Journal:
    """The file. Holds an offset a line in memory, not the answers.

    Args:
        path: Made if it does not exist, mode 0600.
        sync_every_s: Longest time an answer may be in the operating system's hands only.

    Raises:
        JournalError: Another process writes it, or a line other than the last is damaged.
    """

    def __init__(self, path: str | Path, sync_every_s: float = SYNC_EVERY_S) -> None:
        self.path = Path(path).expanduser()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sync_every_s = sync_every_s
        self._synced_at = time.monotonic()
        self._dirty = False
        self._where: dict[Place, tuple[int, int]] = {}
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._lock()
            self._end = self._index()
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        return len(self._where)

    def get(self, place: Place, prompt: str) -> ChatResult | None:
        """The answer kept for a place, or None.

        Args:
            place: Row, step, attempt.
            prompt: Digest of what is asked now.

        Raises:
            JournalError: It was the answer to something else: the inputs of the run have changed.
        """
        if (where := self._where.get(place)) is None:
            return None
        line = json.loads(os.pread(self._file, where[1], where[0]))
        if line["prompt"] != prompt:
            row, step, attempt = place
            raise JournalError(
                f"{self.path}: row {row!r}, step {step!r}, attempt {attempt} was answered for another prompt; the rows, "
                "prompts, model or sampling have changed since. Name another journal, or remove this one to start anew"
            )
        return result_from_dict(line["reply"])

    def put(self, place: Place, prompt: str, found: ChatResult) -> None:
        """Appends a final answer; what a place holds already stays."""
        if place in self._where:
            return
        row, step, attempt = place
        line = {"row": row, "step": step, "attempt": attempt, "prompt": prompt, "reply": result_to_dict(found)}
        data = json.dumps(line).encode("ascii") + b"\n"
        try:
            written = os.write(self._file, data)
        except OSError as error:
            raise JournalError(f"{self.path} cannot be written: {error.strerror}") from error
        if written != len(data):
            os.ftruncate(self._file, self._end)
            raise JournalError(f"{self.path}: the disk is full")
        self._where[place] = (self._end, len(data))
        self._end += len(data)
        self._dirty = True

    @property
    def due(self) -> bool:
        """Whether it is time to force the newest lines to disk."""
        return self._dirty and time.monotonic() - self._synced_at >= self._sync_every_s

    def sync(self) -> None:
        """Forces everything to disk."""
        self._dirty, self._synced_at = False, time.monotonic()
        try:
            os.fsync(self._file)
        except OSError as error:
            raise JournalError(f"{self.path} cannot be forced to disk: {error.strerror}") from error

    def close(self) -> None:
        """Forces everything to disk and lets others write."""
        if self._file >= 0:
            try:
                self.sync()
            finally:
                os.close(self._file)
                self._file = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"{self.path} is in use by another process ({error}); let it end first") from error

    def _index(self) -> int:
        """Reads the places; cuts a torn last line off. Returns the file's length."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    log.warning(
                        "%s: the last line is torn (%d bytes); its answer is asked for again", self.path, len(line)
                    )
                    os.ftruncate(self._file, end)
                    break
                try:
                    kept = json.loads(line)
                    place: Place = (str(kept["row"]), str(kept["step"]), int(kept["attempt"]))
                    result_from_dict(kept["reply"])
                except (ValueError, KeyError, TypeError) as error:
                    raise JournalError(
                        f"{self.path}, line {number}: no journal entry ({type(error).__name__}: {error}); remove the line "
                        "to have its answer asked for again"
                    ) from error
                self._where.setdefault(place, (end, len(line)))
                end += len(line)
        return end


class Journaled:
    """`Chat` that answers from a journal what was answered before.

    Args:
        chat: Who answers the rest.
        journal: Shared by all steps of a run.
        step: What these calls are for, e.g. "planner"; with the call's key and attempt it makes the place.
    """

    def __init__(self, chat: Chat, journal: Journal, step: str) -> None:
        self.model = chat.model
        self._chat = chat
        self._journal = journal
        self._step = step

    async def complete(self, messages: Sequence[Message], **call: Unpack[CallOptions]) -> ChatResult:
        """As `ChatClient.complete`.

        Raises:
            JournalError: The place holds the answer to another prompt, or the disk is full.
        """
        place = (call["key"], self._step, call.get("attempt", 0))
        asked = digest_of([self.model, messages, *sampling_of(call)])
        if (kept := self._journal.get(place, asked)) is not None:
            return kept
        found = await self._chat.complete(messages, **call)
        if found.outcome in FINAL:
            self._journal.put(place, asked, found)
            if self._journal.due:
                await asyncio.to_thread(self._journal.sync)
        return found

    async def aclose(self) -> None:
        """Closes what is below; the journal may serve other steps and is its owner's to close."""
        await self._chat.aclose()
