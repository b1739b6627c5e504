"""Published files as they were downloaded, read row by row: parquet, JSONL, JSON, CSV, `save_to_disk`, the hub.

Nothing here knows a source. A row that cannot be read as a row is handed on with its fault, so that it is
counted; a file that cannot be read at all stops everything. Memory does not grow with the file.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from verl_steer.data.rows import DataError, reading_parquet

BATCH = 64
_SPACE, _SEPARATOR = re.compile(r"\s*"), re.compile(r"\s*,?\s*")
KEY = "_key"  # where the key of a JSON object of objects goes


@dataclass(frozen=True)
class Published:
    """One row as published.

    Attributes:
        file: Name of the file, or of the split on the hub.
        number: 1-based line (JSONL, CSV) or row in it.
        group: The folder or configuration that it lies in; some sources keep the category there.
        folder: Where relative picture paths begin, if not said otherwise.
        record: The columns, or None.
        fault: Why there is no record.
        label: What tells its file from others of the same name in ids, or "".
    """

    file: str
    number: int
    group: str
    folder: Path
    record: dict[str, Any] | None
    fault: str = ""
    label: str = ""


def files_of(paths: Iterable[Path], patterns: Sequence[str]) -> list[Path]:
    """The tables among `paths`; a folder is searched for the source's patterns.

    Raises:
        DataError: A path does not exist, or a folder holds nothing that fits.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if path.is_dir() and not is_saved(path):
            inside = sorted({file for pattern in patterns for file in path.rglob(pattern) if _is_table(file)})
            if not inside:
                raise DataError(f"{path} holds no {' or '.join(patterns)}; name the file if it is called otherwise")
            found += inside
        else:
            found.append(path)
    return found


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name != "dataset_info.json"  # LLaMA-Factory's index of its files


def is_saved(path: Path) -> bool:
    """True for a folder that `save_to_disk` wrote, of a Dataset or of a DatasetDict."""
    return (path / "state.json").is_file() or is_saved_dict(path)


def is_saved_dict(path: Path) -> bool:
    """True for a folder that `DatasetDict.save_to_disk` wrote: it has splits to choose from."""
    return (path / "dataset_dict.json").is_file()


def told_apart(files: Sequence[Path]) -> list[str]:
    """What tells files of one name apart: the folders below the one that all of them lie in; "" for any other file.

    Neither where that one lies nor the order of the files matters, so ids are the same on every machine.
    """
    # In the hub's cache, what a link leads to has no name.
    places = [file.parent.resolve() / file.name for file in files]
    named: dict[str, set[Path]] = defaultdict(set)
    for place in places:
        named[place.stem].add(place)
    return [_label(place, named[place.stem]) for place in places]


def _label(place: Path, alike: set[Path]) -> str:
    if len(alike) == 1:
        return ""
    root = os.path.commonpath([other.parent for other in alike])
    folders = "-".join(place.parent.relative_to(root).parts)
    beside = Counter(other.parent for other in alike)[place.parent] > 1  # a.json and a.jsonl
    return "-".join(filter(None, (folders, place.suffix[1:] if beside else "")))


def read(path: Path, split: str = "") -> Iterator[Published]:
    """All rows of one file, or of one saved data set.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    if path.is_dir():
        return _saved(path, split)
    reader = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json, ".csv": _csv}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: {path.suffix or 'no ending'} is not one of .parquet, .jsonl, .json, .csv")
    return reader(path)


def read_hub(name: str, config: str, split: str) -> Iterator[Published]:
    """Streams a split from the hub (or from a folder that `datasets.load_dataset` understands).

    Raises:
        DataError: The hub gave nothing; what it said follows.
    """
    import datasets

    try:
        stream = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        batches = stream.with_format("arrow").iter(batch_size=BATCH)
        yield from _tables(batches, split or "train", config, Path.cwd())
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"hub data set {name} ({config or 'default'}, {split or 'train'}): {error}") from error


def _tables(tables: Iterable[Any], file: str, group: str, folder: Path) -> Iterator[Published]:
    number = 0
    for table in tables:
        for record in table.to_pylist():
            number += 1
            yield Published(file, number, group, folder, record)


def _saved(path: Path, split: str) -> Iterator[Published]:
    import datasets

    data = datasets.load_from_disk(str(path))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(f"{path} holds the splits {sorted(data)}; choose one with --split")
        data = data[split]
    return _tables(data.with_format("arrow").iter(batch_size=BATCH), path.name, path.parent.name, path)


def _parquet(path: Path) -> Iterator[Published]:
    import pyarrow.parquet as pq

    with reading_parquet(path), pq.ParquetFile(path) as file:
        yield from _tables(file.iter_batches(batch_size=BATCH), path.name, path.parent.name, path.parent)


def _jsonl(path: Path) -> Iterator[Published]:
    group, folder = path.parent.name, path.parent
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                yield Published(path.name, number, group, folder, None, f"not JSON: {error}")
                continue
            yield _object(path, number, value)


def _object(path: Path, number: int, value: Any) -> Published:
    # A line of CoSafe is a bare list of messages.
    record = {"messages": value} if isinstance(value, list) else value
    if not isinstance(record, dict):
        fault = f"not an object but {type(value).__name__}"
        return Published(path.name, number, path.parent.name, path.parent, None, fault)
    return Published(path.name, number, path.parent.name, path.parent, record)


def _json(path: Path) -> Iterator[Published]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(1024).lstrip()
        if head.startswith("["):
            for number, value in enumerate(_array(path), 1):
                yield _object(path, number, value)
            return
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8, as JSON must be: {error}; write it anew in UTF-8") from error
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(whole, dict):
        raise DataError(f"{path} is neither an array nor an object of rows")
    for number, (key, value) in enumerate(whole.items(), 1):
        yield _object(path, number, {KEY: key, **value} if isinstance(value, dict) else value)


def _array(path: Path, chunk: int = 2**20) -> Iterator[Any]:
    """The elements of a JSON array one by one, whatever its length."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        text, at, found = file.read(chunk).lstrip()[1:], 0, 0
        while True:
            begin = _skip(_SEPARATOR, text, at)
            if text.startswith("]", begin):
                _end(path, file, text[begin + 1 :], found)
                return
            fault = "it ends early"
            try:
                value, end = decoder.raw_decode(text, begin)
                end = _skip(_SPACE, text, end)
                if text[end : end + 1] in (",", "]"):
                    yield value
                    at, found = end, found + 1
                    continue
            except ValueError as error:
                fault = str(error)
            more = file.read(chunk)
            if not more:
                raise DataError(f"{path} is not a JSON array: {fault}, near {text[begin : begin + 60]!r}")
            if at == 0:
                chunk *= 2  # one element longer than the chunk: read on in larger steps
            text, at = text[at:] + more, 0


def _end(path: Path, file: TextIO, rest: str, found: int) -> None:
    """Nothing may follow an array: `cat a.json b.json` would lose the rows of b."""
    while not (after := rest.lstrip()) and (rest := file.read(2**12)):
        pass
    if after:
        raise DataError(
            f"{path}: the JSON array ends after {found} rows, and {after[:60]!r} follows; "
            "if files were joined, give each of them by itself"
        )


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _csv(path: Path) -> Iterator[Published]:
    csv.field_size_limit(2**27)
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        # Strict: else a quote that is never closed makes one field of all the rows behind it.
        reader = csv.DictReader(file, strict=True)
        group, folder = path.parent.name, path.parent
        begin = 1
        try:
            for record in reader:
                if None in record or None in record.values():
                    found = sum(value is not None for value in record.values())
                    fault = f"has another number of fields than the header's {len(reader.fieldnames or [])} ({found})"
                    yield Published(path.name, reader.line_num, group, folder, None, fault)
                else:
                    yield Published(path.name, reader.line_num, group, folder, dict(record))
                begin = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}: the row that begins in line {begin} cannot be read as CSV: {error} "
                f"(line {reader.line_num}); is a quote open, or not doubled inside a quoted field?"
            ) from error
