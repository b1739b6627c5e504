"""The two JSONL files of the paper's reference code; `sources/reference_*.py` reads them."""

from __future__ import annotations

from typing import Any

from verl_steer.data.formats.pictures import PictureFolder
from verl_steer.data.rows import RowError
from verl_steer.data.schemas import ScriptRow

_META = ("source_category", "risk_trajectory")
RL_DROPS = ("source", "licence", "category", "kind", "meta", "question", "index", "split", "subset")
BENCH_DROPS = ("source", "licence", "kind", "meta", "question", "answer", "index", "split", "subset")


def encode_rl(row: ScriptRow, pictures: PictureFolder) -> dict[str, Any]:
    """A script; the later turns go to metadata.rest_messages, the reference answer to label."""
    _only_first(row)
    images = [pictures.put(image) for image in row.turns[0].images]
    first = [{"role": "system", "content": row.system}] if row.system else []
    first.append({"role": "user", "content": row.turns[0].text})
    rest = [{"role": "user", "content": turn.text} for turn in row.turns[1:]]
    metadata = {"rest_messages": rest, "question_id": row.id, "image": images[0] if images else None}
    return {"question": first, "metadata": metadata, "images": images, "label": row.answer or ""}


def encode_bench(row: ScriptRow, pictures: PictureFolder) -> dict[str, Any]:
    """A fixed script about one picture; of meta, source_category and risk_trajectory have a place."""
    _only_first(row)
    if len(row.turns[0].images) > 1:
        raise RowError(f"row {row.id!r}: the format holds one picture, this shows {len(row.turns[0].images)}")
    images = [pictures.put(image) for image in row.turns[0].images]
    messages = [{"role": "system", "content": row.system}] if row.system else []
    messages += [{"role": "user", "content": turn.text} for turn in row.turns]
    more = {name: row.meta[name] for name in _META if name in row.meta}
    image = images[0] if images else ""
    return {"question_id": row.id, "image": image, "messages_fixed": messages, "category": row.category, **more}


def _only_first(row: ScriptRow) -> None:
    late = [t for t, turn in enumerate(row.turns, 1) if t > 1 and turn.images]
    if late:
        raise RowError(f"row {row.id!r}: the format shows pictures in the first turn only, this one in turn {late[0]}")
