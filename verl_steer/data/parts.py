"""Part files: how long work is stopped at any instant and goes on with the same command.

Beside the result lies `OUT.parts/`: numbered part files, each with an account that is written last and
commits it. A rerun skips what the committed parts have read; when everything is there the parts are joined,
one row group each, and renamed into place. So a resumed run gives the same bytes as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_steer.whole import replacing, write_text


@dataclass
class Part:
    """The account of one part: read = written + rejected; of the rejected, so many lack a picture's file."""

    read: int = 0
    written: int = 0
    missing: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Account:
    """The account of a whole conversion: read = written + rejected, always.

    Attributes:
        missing: Of the rejected, rows whose picture's file was not there.
        earlier: It is of an earlier run; this one did nothing.
    """

    read: int
    written: int
    rejected: int
    rejected_path: Path
    sha256: str = ""
    missing: int = 0
    earlier: bool = field(default=False, compare=False)


class Parts:
    """The parts of one output.

    Args:
        out: The file to be.
        plan: Everything that the result depends on; parts of another plan are thrown away.
    """

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        self.out, self.plan = out, plan
        self.folder = out.with_name(f"{out.name}.parts")
        self.rejected_path = out.with_name(f"{out.name}.rejected.jsonl")
        self._account = out.with_name(f"{out.name}.account.json")
        self._mark = self.folder / "plan.json"

    def finished(self) -> Account | None:
        """The account of an earlier run, if it did just this and its file is still what it wrote.

        The plan knows the tables and not the pictures beside them, which may have come since: an account with
        missing ones is never finished.
        """
        if not self._account.is_file() or not self.out.is_file():
            return None
        stored = _stored(self._account)
        if stored.pop("plan", None) != self.plan or stored["sha256"] != file_hash(self.out):
            return None
        account = Account(**{**stored, "rejected_path": self.rejected_path, "earlier": True})
        return None if account.missing else account

    def open(self) -> list[Part]:
        """Makes the folder; returns the committed parts of an interrupted run of the same plan."""
        if self.folder.exists() and _stored(self._mark) != self.plan:
            self._discard()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._mark, json.dumps(self.plan, indent=1))
        done: list[Part] = []
        while (account := self._path(len(done), "json")).is_file():
            done.append(Part(**json.loads(account.read_text(encoding="utf-8"))))
        return done

    def commit(self, number: int, table: pa.Table, part: Part) -> None:
        """Writes part `number`; it counts from the moment its account is there."""
        path = self._path(number, "parquet")
        pq.write_table(table, path)
        write_text(self._path(number, "json"), json.dumps(asdict(part), ensure_ascii=False))
        pa.default_memory_pool().release_unused()  # else the allocator's slack grows with the number of parts

    def join(self, schema: pa.Schema) -> Account:
        """Joins the parts into the result and takes them away."""
        read = written = rejected = missing = 0
        with (
            replacing(self.out) as temporary,
            replacing(self.rejected_path) as faults,
            pq.ParquetWriter(temporary, schema) as writer,
            faults.open("w", encoding="utf-8") as lines,
        ):
            for number, part in enumerate(self._committed()):
                if part.written:
                    writer.write_table(pq.ParquetFile(self._path(number, "parquet")).read(use_threads=False))
                    pa.default_memory_pool().release_unused()
                lines.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in part.rejected)
                read, written, rejected = read + part.read, written + part.written, rejected + len(part.rejected)
                missing += part.missing
        account = Account(read, written, rejected, self.rejected_path, file_hash(self.out), missing)
        write_text(self._account, json.dumps({**asdict(account), "rejected_path": "", "plan": self.plan}, indent=1))
        self._discard()
        return account

    def _discard(self) -> None:
        """Whose parts they are goes first: what an interrupted removal leaves belongs to no plan, and is never used."""
        self._mark.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def _committed(self) -> Iterator[Part]:
        number = 0
        while (account := self._path(number, "json")).is_file():
            yield Part(**json.loads(account.read_text(encoding="utf-8")))
            number += 1

    def _path(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:06d}.{ending}"


def _stored(path: Path) -> dict[str, Any]:
    """A JSON object; {} if there is none, or not a whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
