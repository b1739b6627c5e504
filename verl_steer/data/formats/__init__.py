"""Formats of other tools: written from a split, read back by the adapters in `sources/`.

Every format says what it cannot hold. A row that it cannot hold at all (a picture in a later turn where there
is one place for pictures) is rejected with a reason; nothing is lost in silence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_steer.data import sources
from verl_steer.data.conversation import to_row
from verl_steer.data.formats import bench_jsonl, llamafactory, reference
from verl_steer.data.formats.pictures import PictureFolder
from verl_steer.data.images import ImagePolicy
from verl_steer.data.parts import Account
from verl_steer.data.published import read
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import AnyRow, BenchRow, RlRow, ScriptRow, SftRow, build
from verl_steer.data.sources.base import At
from verl_steer.data.splits import LAYOUTS, layout_of, read_split, table

Rows = Iterator[AnyRow | RowError]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Format:
    """A text format: one JSON value a row, pictures as files.

    Attributes:
        takes: Kind of row.
        encode: Row and picture folder -> JSON value; raises RowError for a row that it cannot hold.
        drops: Fields that it has no place for.
        array: A JSON array instead of a value a line.
        finish: Called with the written file (an index beside it).
    """

    takes: type[AnyRow]
    encode: Callable[[Any, PictureFolder], Any]
    drops: tuple[str, ...]
    array: bool = False
    finish: Callable[[Path], None] | None = None


FORMATS = {
    "llamafactory": Format(
        SftRow, llamafactory.encode, llamafactory.DROPS, array=True, finish=llamafactory.add_to_index
    ),
    "reference_rl": Format(ScriptRow, reference.encode_rl, reference.RL_DROPS),
    "reference_bench": Format(ScriptRow, reference.encode_bench, reference.BENCH_DROPS),
    "bench_jsonl": Format(BenchRow, bench_jsonl.encode, ()),
}
# Between splits: a script is trained on (rl) or looked at (script), whatever it came as.
_SPLITS: dict[str, tuple[str, ...]] = {"rl": ("subset",), "script": ("index", "split", "subset")}


def export(
    path: Path, to: str, out: Path, progress: Progress = lambda read, rejected: None
) -> tuple[Account, tuple[str, ...]]:
    """Writes a split in another format.

    Args:
        path: A split (parquet), or a file that `read_any` reads.
        to: A name of `FORMATS`, or "rl" or "script".
        out: File to write; pictures go to `images/` beside it, what cannot be written to `OUT.rejected.jsonl`.
        progress: Called with the rows read and rejected so far.

    Returns:
        The account, and the names of the fields that the format has no place for.

    Raises:
        DataError: The format is unknown or does not take such rows.
    """
    if to not in FORMATS and to not in _SPLITS:
        raise DataError(f"--to {to} is not one of {', '.join((*FORMATS, *_SPLITS))}")
    name, rows = read_any(path)
    takes = FORMATS[to].takes if to in FORMATS else ScriptRow
    if not issubclass(LAYOUTS[name].model, takes):
        able = [n for n, layout in LAYOUTS.items() if issubclass(layout.model, takes)]
        raise DataError(f"{to} is written from {' or '.join(able)} rows, {path} holds {name} rows")
    out.parent.mkdir(parents=True, exist_ok=True)
    if to in _SPLITS:
        return _to_split(rows, to, out, progress), tuple(
            f for f in _SPLITS[to] if f in LAYOUTS[name].model.model_fields
        )
    form = FORMATS[to]
    folder = PictureFolder(out.parent)
    with _Output(out, progress) as output, output.temporary.open("w", encoding="utf-8") as file:
        file.write("[" if form.array else "")
        for row in rows:
            line = output.attempt(row, lambda row: json.dumps(form.encode(row, folder), ensure_ascii=False))
            if line is not None:
                file.write((("\n" if output.written == 1 else ",\n") + line) if form.array else line + "\n")
        file.write("\n]\n" if form.array else "")
    if form.finish:
        form.finish(out)
    return output.account(), tuple(f for f in form.drops if f in LAYOUTS[name].model.model_fields)


def _to_split(rows: Rows, to: str, out: Path, progress: Progress) -> Account:
    import pyarrow.parquet as pq

    layout = LAYOUTS[to]
    with _Output(out, progress) as output, pq.ParquetWriter(output.temporary, table(layout, []).schema) as writer:
        batch: list[AnyRow] = []
        for row in rows:
            new = output.attempt(row, lambda row: _as_script(row, to, output.written))
            batch += [] if new is None else [new]
            if len(batch) == 64:
                writer.write_table(table(layout, batch))
                batch = []
        writer.write_table(table(layout, batch))
    return output.account()


def _as_script(row: ScriptRow, to: str, index: int) -> ScriptRow:
    values = {name: getattr(row, name) for name in ScriptRow.model_fields}
    return build(RlRow, {**values, "index": index}) if to == "rl" else build(ScriptRow, values)


class _Output:
    """A file that appears whole or not at all, with the account of its rows."""

    def __init__(self, out: Path, progress: Progress) -> None:
        self.out, self._progress = out, progress
        self.temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        self.rejected_path = out.with_name(f"{out.name}.rejected.jsonl")
        self.read = self.written = 0
        self.rejected: list[dict[str, Any]] = []

    def __enter__(self) -> _Output:
        return self

    def attempt(self, row: AnyRow | RowError, encode: Callable[[Any], Any]) -> Any:
        """The encoded row, or None after it was put on the list of rejected ones."""
        self.read += 1
        self._progress(self.read, len(self.rejected))
        try:
            if isinstance(row, RowError):
                raise row
            line = encode(row)
        except RowError as error:
            self.rejected.append({"row": self.read - 1, "reason": str(error)})
            return None
        self.written += 1
        return line

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.rejected)
                self.rejected_path.write_text(lines, encoding="utf-8")
                self.temporary.replace(self.out)
        finally:
            self.temporary.unlink(missing_ok=True)

    def account(self) -> Account:
        return Account(self.read, self.written, len(self.rejected), self.rejected_path)


_ADAPTERS = (("messages_fixed", "reference_bench", "bench"), ("metadata", "reference_rl", "rl"))


def read_any(path: Path) -> tuple[str, Rows]:
    """Rows of a split or of an exported file, and which kind they are.

    Raises:
        DataError: It is neither.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.suffix == ".parquet":
        layout = layout_of(path)
        return layout.name, read_split(path, layout)
    first = next((p.record for p in read(path) if p.record is not None), None)
    if first is None:
        raise DataError(f"{path} holds no rows")
    if "turns" in first and "subset" in first:
        return "bench", _rows(path, lambda record, at, index: bench_jsonl.decode(record, at))
    adapter, kind = "sharegpt", "sft"
    for column, name, split in _ADAPTERS:
        if column in first:
            adapter, kind = name, split
    source = sources.get(adapter)
    source.check_columns(next(p for p in read(path) if p.record is not None))
    return kind, _rows(path, lambda record, at, index: to_row(source.convert(record, at), kind, index))


def _rows(path: Path, decode: Callable[[Any, At, int], AnyRow]) -> Rows:
    """Pictures come as they are: only their headers are looked at."""
    for index, published in enumerate(read(path)):
        at = At(path.stem, "", published, published.folder, ImagePolicy(as_is=True))
        try:
            if published.record is None:
                raise RowError(published.fault)
            yield decode(published.record, at, index)
        except RowError as error:
            yield RowError(f"line {published.number}: {error}")
        except KeyError as error:
            yield RowError(f"line {published.number}: {error} is missing")
