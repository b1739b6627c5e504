"""How candidates lie in parquet: a script's columns, then what was measured of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import VERSION, ScriptRow, SftRow, build
from verl_steer.data.splits import LAYOUTS
from verl_steer.scores import TutorScores
from verl_steer.synthesis.candidate import Candidate

_SCRIPT = LAYOUTS["script"]
_SCORES = pa.struct([(name, pa.int8()) for name in ("safety", "usefulness", "faithfulness")])
_SAID = pa.struct([("text", pa.string()), ("reply", pa.string())])
_MEASURED = [
    ("cluster", pa.string()),
    ("turn_scores", pa.list_(_SCORES)),
    ("dialogue", pa.list_(_SAID)),
    ("last_alone_safe", pa.bool_()),
    ("dialogue_safe", pa.bool_()),
    ("success", pa.int8()),
]
SCHEMA = pa.schema([*_SCRIPT.schema, *(pa.field(*column) for column in _MEASURED)]).with_metadata(
    {b"verl_steer.split": b"candidate", b"verl_steer.version": str(VERSION).encode()}
)


def to_table(candidates: Iterable[Candidate]) -> pa.Table:
    """Candidates as a table."""
    return pa.Table.from_pylist([_columns(candidate) for candidate in candidates], schema=SCHEMA)


def read_candidates(path: Path) -> Iterator[Candidate]:
    """The candidates of one file, in order.

    Raises:
        DataError: The file cannot be read, or a row is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from map(_candidate, batch.to_pylist())
    except (pa.ArrowException, OSError, RowError, KeyError) as error:
        raise DataError(f"{path} holds no candidates: {error}; remove it and build again") from error


def _columns(candidate: Candidate) -> dict[str, Any]:
    said = candidate.dialogue
    return {
        **_SCRIPT.to_columns(candidate.script),
        "cluster": candidate.cluster,
        "turn_scores": [None if score is None else vars(score) for score in candidate.turn_scores],
        # The pictures stand in the script's turns.
        "dialogue": None if said is None else [{"text": turn.text, "reply": turn.reply} for turn in said.turns],
        "last_alone_safe": candidate.last_alone_safe,
        "dialogue_safe": candidate.dialogue_safe,
        "success": candidate.success,
    }


def _candidate(columns: Mapping[str, Any]) -> Candidate:
    script = _SCRIPT.from_columns(columns, f"candidate {columns.get('id')!r}")
    assert isinstance(script, ScriptRow)
    scores = (None if score is None else TutorScores(**score) for score in columns["turn_scores"])
    measured = {name: columns[name] for name in ("last_alone_safe", "dialogue_safe", "success")}
    return Candidate(script, columns["cluster"], tuple(scores), _dialogue(script, columns["dialogue"]), **measured)


def _dialogue(script: ScriptRow, said: list[dict[str, str]] | None) -> SftRow | None:
    if said is None:
        return None
    turns = [{**turn, "images": planned.images} for turn, planned in zip(said, script.turns, strict=True)]
    common = {name: getattr(script, name) for name in ("id", "source", "licence", "category", "kind", "meta", "system")}
    return build(SftRow, {**common, "turns": turns})
