"""How the rows of `schemas.py` lie in parquet: one layout a split, fixed types, a version in every file.

`rl` is verl's RL layout (`rows.py`), `sft` the one of verl's MultiTurnSFTDataset: `messages` with `<image>`
where a picture stands, `images` in their order. Seeds, scripts and bench rows nest pictures in their turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_steer.data import rows as rl
from verl_steer.data.rows import IMAGE, IMAGES, DataError, RowError, image_column, read_images, reading_parquet
from verl_steer.data.schemas import (
    VERSION,
    AnyRow,
    BenchRow,
    RlRow,
    ScriptRow,
    SeedRow,
    SftRow,
    build,
    script_values,
    to_script,
)
from verl_steer.data.sources.messages import exchanges

Columns = dict[str, Any]
_COMMON = [(name, pa.string()) for name in ("id", "source", "licence", "category", "kind", "meta")]
_TURNS = pa.list_(pa.struct([("text", pa.string()), ("images", IMAGES)]))
_SCRIPT = [*_COMMON, *((name, pa.string()) for name in ("system", "question", "answer")), ("turns", _TURNS)]
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@dataclass(frozen=True)
class Layout:
    """A split's columns and the way there and back."""

    name: str
    model: type[AnyRow]
    schema: pa.Schema
    to_columns: Callable[[Any], Columns]
    from_columns: Callable[[Mapping[str, Any], str], AnyRow]


def _common(row: AnyRow) -> Columns:
    return {
        "id": row.id,
        "source": row.source,
        "licence": row.licence,
        "category": row.category,
        "kind": row.kind.value,
        "meta": json.dumps(row.meta, ensure_ascii=False, allow_nan=False),
    }


def _values(columns: Mapping[str, Any], where: str) -> Columns:
    """The common fields back; a file without one of them is named by it."""
    if missing := [name for name, _ in _COMMON if name not in columns]:
        raise RowError(f"{where}: column {missing[0]} is missing; found {', '.join(columns)}")
    try:
        meta = json.loads(columns["meta"])
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}: column meta is not JSON: {error}") from error
    return {**{name: columns[name] for name, _ in _COMMON}, "meta": meta}


def _seed_to(row: SeedRow) -> Columns:
    return {**_common(row), "question": row.question, "images": image_column(row.images), "answer": row.answer}


def _seed_from(columns: Mapping[str, Any], where: str) -> SeedRow:
    images = tuple(read_images(columns.get("images"), f"{where}: column images"))
    own = {"question": columns.get("question"), "images": images, "answer": columns.get("answer")}
    return build(SeedRow, {**_values(columns, where), **own})


def _script_to(row: ScriptRow) -> Columns:
    turns = [{"text": turn.text, "images": image_column(turn.images)} for turn in row.turns]
    columns = {**_common(row), "system": row.system, "question": row.question, "answer": row.answer, "turns": turns}
    return {**columns, "subset": row.subset} if isinstance(row, BenchRow) else columns


def _script_from(model: type[ScriptRow], names: tuple[str, ...]) -> Callable[[Mapping[str, Any], str], AnyRow]:
    def back(columns: Mapping[str, Any], where: str) -> AnyRow:
        turns = [
            {"text": turn.get("text"), "images": tuple(read_images(turn.get("images"), f"{where}: turn {t}"))}
            for t, turn in enumerate(columns.get("turns") or [], 1)
        ]
        return build(model, {**_values(columns, where), **{n: columns.get(n) for n in names}, "turns": turns})

    return back


def _rl_to(row: RlRow) -> Columns:
    return rl.script_to_row(to_script(row), row.index, row.split)


def _rl_from(columns: Mapping[str, Any], where: str) -> RlRow:
    script = rl.row_to_script(columns)
    info = columns.get("extra_info") or {}
    place = {"index": info.get("index"), "split": info.get("split")}
    return build(RlRow, {**script_values(script), **place})


def _sft_to(row: SftRow) -> Columns:
    messages = [{"role": "system", "content": row.system}] if row.system else []
    for turn in row.turns:
        messages.append({"role": "user", "content": IMAGE * len(turn.images) + turn.text})
        messages.append({"role": "assistant", "content": turn.reply})
    return {**_common(row), "messages": messages, "images": image_column(i for t in row.turns for i in t.images)}


def _sft_from(columns: Mapping[str, Any], where: str) -> SftRow:
    pictures = read_images(columns.get("images"), f"{where}: column images")
    try:
        system, said = exchanges(columns.get("messages"), pictures)
    except RowError as error:
        raise RowError(f"{where}: {error}") from error
    turns = [{"text": one.text, "images": tuple(one.images), "reply": one.reply} for one in said]
    return build(SftRow, {**_values(columns, where), "system": system, "turns": turns})


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "seed",
            SeedRow,
            pa.schema([*_COMMON, ("question", pa.string()), ("images", IMAGES), ("answer", pa.string())]),
            _seed_to,
            _seed_from,
        ),
        Layout(
            "script",
            ScriptRow,
            pa.schema(_SCRIPT),
            _script_to,
            _script_from(ScriptRow, ("system", "question", "answer")),
        ),
        Layout("rl", RlRow, rl.SCHEMA, _rl_to, _rl_from),
        Layout("sft", SftRow, pa.schema([*_COMMON, ("messages", _MESSAGES), ("images", IMAGES)]), _sft_to, _sft_from),
        Layout(
            "bench",
            BenchRow,
            pa.schema([*_SCRIPT, ("subset", pa.string())]),
            _script_to,
            _script_from(BenchRow, ("system", "question", "answer", "subset")),
        ),
    )
}
_MARKS = (("steer", "rl"), ("messages", "sft"), ("subset", "bench"), ("turns", "script"), ("question", "seed"))


def layout_of(path: Path) -> Layout:
    """The layout of a parquet file, told by its columns; micro-world and older RL files have no mark.

    Raises:
        DataError: Not parquet, none of ours, or written by a newer version.
    """
    with reading_parquet(path):
        schema = pq.read_schema(path)
    version = int((schema.metadata or {}).get(b"verl_steer.version", b"1"))
    if version > VERSION:
        raise DataError(f"{path} has version {version} of the schemas, this verl_steer reads {VERSION}: update it")
    for column, name in _MARKS:
        if column in schema.names:
            return LAYOUTS[name]
    raise DataError(f"{path} is no split: its columns are {', '.join(schema.names)}")


def read_split(path: Path, layout: Layout | None = None) -> Iterator[AnyRow | RowError]:
    """Rows of a split in order; one that breaks a rule comes as its fault.

    Raises:
        DataError: The file is damaged.
    """
    layout = layout or layout_of(path)
    number = 0
    with reading_parquet(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64):
            for columns in batch.to_pylist():
                try:
                    yield layout.from_columns(columns, f"row {number}")
                except RowError as error:
                    yield error if str(error).startswith("row") else RowError(f"row {number}: {error}")
                number += 1


def table(layout: Layout, rows: Iterable[AnyRow]) -> pa.Table:
    """Rows as a table of the layout's types, with name and version in its metadata."""
    marks = {b"verl_steer.split": layout.name.encode(), b"verl_steer.version": str(VERSION).encode()}
    return pa.Table.from_pylist([layout.to_columns(row) for row in rows], schema=layout.schema.with_metadata(marks))
