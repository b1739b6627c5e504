"""Candidates on disk while it is decided which are taken: only what decides stays in memory."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from verl_steer.dialogue import Kind
from verl_steer.synthesis.candidate import Candidate


@dataclass(slots=True)
class Entry:
    """A candidate, by what decides about it.

    Attributes:
        id: Of its script.
        cluster: Its seed.
        kind: Its pool.
        key: Random but for the seed and the id; rows are drawn and written in this order.
        turns: Length in each split.
        place: Offset and size in the spool, or None if no split may have it.
        fate: What became of it, by split: "chosen", "not_needed" or a rule's name, and the row that it repeats, or "".
    """

    id: str
    cluster: str
    kind: Kind
    key: bytes
    turns: dict[str, int]
    place: tuple[int, int] | None = None
    fate: dict[str, tuple[str, str]] = field(default_factory=dict)


class Spool:
    """A nameless file beside the result, gone when it is closed, however the process ends.

    Candidates are pickled: nobody else can write into the file, and it never outlives the process.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._end = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._file.close()

    def put(self, candidate: Candidate) -> tuple[int, int]:
        """Keeps a candidate; returns its place."""
        data = pickle.dumps(candidate, protocol=pickle.HIGHEST_PROTOCOL)
        self._file.seek(self._end)
        self._file.write(data)
        place = (self._end, len(data))
        self._end += len(data)
        return place

    def get(self, entry: Entry) -> Candidate:
        """Reads a candidate back."""
        if entry.place is None:
            raise KeyError(f"{entry.id!r} is not in the spool")
        self._file.seek(entry.place[0])
        found: Candidate = pickle.loads(self._file.read(entry.place[1]))
        return found
