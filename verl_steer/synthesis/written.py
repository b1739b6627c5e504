"""A candidate as a row of a split, and rows as a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verl_steer.data.convert import PART_BYTES, PART_ROWS
from verl_steer.data.schemas import AnyRow, BenchRow, RlRow, ScriptRow, SftRow, build
from verl_steer.data.splits import LAYOUTS, table
from verl_steer.data.validate import images_of
from verl_steer.synthesis.candidate import Candidate, origin_of


def row_of(candidate: Candidate, split: str) -> ScriptRow | SftRow:
    """What a split would get of a candidate."""
    return candidate.dialogue if split == "sft" and candidate.dialogue is not None else candidate.script


def as_row(candidate: Candidate, split: str, index: int) -> AnyRow:
    """The row of a split; its meta always says its cluster (`origin_of`), so that files can be compared later.

    Args:
        candidate: One with a dialogue, for SFT.
        split: "sft", "rl" or "bench".
        index: Position in the split (RL rows carry it).

    Raises:
        RowError: It cannot be such a row.
    """
    row = row_of(candidate, split)
    meta = {**row.meta, **candidate.script.meta}
    if origin_of(meta) != candidate.cluster:
        meta["source_id" if meta.get("source_id") else "seed_id"] = candidate.cluster
    if isinstance(row, SftRow):
        return row.model_copy(update={"meta": meta})
    values: dict[str, Any] = {name: getattr(row, name) for name in ScriptRow.model_fields} | {"meta": meta}
    if split == "rl":
        return build(RlRow, {**values, "index": index})
    subset = getattr(row, "subset", "") or meta.get("subset") or row.source
    return build(BenchRow, {**values, "subset": subset})


def can_be_written(candidate: Candidate, split: str) -> bool:
    """Whether the columns of a split can hold it: one bad row must not cost the others."""
    try:
        LAYOUTS[split].to_columns(as_row(candidate, split, 0))
    except ValueError:  # RowError, or JSON that has no number for a NaN in meta
        return False
    return True


def write_split(path: Path, split: str, rows: Iterable[AnyRow]) -> None:
    """Writes rows in row groups of bounded size."""
    layout = LAYOUTS[split]
    with pq.ParquetWriter(path, table(layout, []).schema) as writer:
        held: list[AnyRow] = []
        weight = 0
        for row in rows:
            held.append(row)
            weight += sum(len(image.data) for image in images_of(row))
            if len(held) >= PART_ROWS or weight >= PART_BYTES:
                writer.write_table(table(layout, held))
                held, weight = [], 0
        if held:
            writer.write_table(table(layout, held))
