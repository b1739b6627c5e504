"""JSON lines that grow while a command runs, and files that appear whole.

A line is handed to the operating system in one write as soon as it is known, so it survives the death of the
process; a torn last line is cut off at the next start. When the command is through, the file is written anew in
its right order and takes the old one's place in one step.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from verl_steer.whole import replacing, writable

M = TypeVar("M", bound=BaseModel)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class BenchError(RuntimeError):
    """The bench cannot go on; the message says what is wrong, where, and what to do."""


class Lines(Generic[M]):
    """A JSON-lines file of one model, open for appending; one process at a time.

    Args:
        path: Made if missing, mode 0600: it may hold harmful text.
        model: What a line is.

    Raises:
        BenchError: Another process writes it, or a line other than a torn last one is damaged.
    """

    def __init__(self, path: Path, model: type[M]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise BenchError(f"{path} is being written by another process; let it end first") from error
        try:
            data = path.read_bytes() if path.is_file() else b""
            self.found = _parsed(path, data[: data.rfind(b"\n") + 1], model)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.ftruncate(self._file, data.rfind(b"\n") + 1)
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, line: M) -> None:
        """Adds one line.

        Raises:
            BenchError: The disk is full; the file holds whole lines only.
        """
        data, end = _line(line), os.fstat(self._file).st_size
        if os.write(self._file, data) != len(data):
            os.ftruncate(self._file, end)
            raise BenchError(f"{self.path}: the disk is full")

    def settle(self, ordered: Iterable[M]) -> None:
        """Puts these lines in the place of all."""
        whole(self.path, b"".join(map(_line, ordered)))

    def close(self) -> None:
        """Forces the file to disk and lets others write it."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
            os.close(self._lock)


def read_lines(path: Path, model: type[M]) -> list[M]:
    """Reads a JSON-lines file; a torn last line (a command that was killed) is left out.

    Raises:
        BenchError: The file is missing or a line is damaged; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}; give the folder of a bench run") from error
    return _parsed(path, data[: data.rfind(b"\n") + 1], model)


def whole(path: Path, data: bytes) -> None:
    """Writes a file (mode 0600) so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, os.fdopen(os.open(temporary, _NEW, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _parsed(path: Path, data: bytes, model: type[M]) -> list[M]:
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found.append(model.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the line"
            raise BenchError(
                f"{path}, line {number}: {place}: {first['msg']}; remove the line and run the same command again"
            ) from error
    return found


def _line(line: BaseModel) -> bytes:
    return writable(json.dumps(line.model_dump(mode="json"), ensure_ascii=False)).encode() + b"\n"
