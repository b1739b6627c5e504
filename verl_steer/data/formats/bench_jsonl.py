"""Our own bench file: a bench row a line, pictures as files with their SHA-256; holds everything."""

from __future__ import annotations

from typing import Any

from verl_steer.data.formats.pictures import PictureFolder
from verl_steer.data.rows import RowError
from verl_steer.data.schemas import VERSION, BenchRow, build
from verl_steer.data.sources.base import At, Record


def encode(row: BenchRow, pictures: PictureFolder) -> dict[str, Any]:
    """One row."""
    fields = {name: getattr(row, name) for name in BenchRow.model_fields if name != "turns"}
    turns = [
        {"text": turn.text, "images": [{"path": pictures.put(i), "sha256": i.sha256} for i in turn.images]}
        for turn in row.turns
    ]
    return {"version": VERSION, **fields, "kind": row.kind.value, "turns": turns}


def decode(record: Record, at: At) -> BenchRow:
    """The inverse of `encode`.

    Raises:
        RowError: A field is missing or wrong, or a picture is not the one that was written.
    """
    values = dict(record)
    if (version := values.pop("version", VERSION)) != VERSION:
        raise RowError(f"has version {version!r}, this verl_steer reads {VERSION}")
    turns = values.get("turns")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("turns must be a list of {text, images}")
    values["turns"] = [{**turn, "images": _pictures(turn.get("images") or [], at)} for turn in turns]
    return build(BenchRow, values)


def _pictures(images: Any, at: At) -> tuple[Any, ...]:
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise RowError("images of a turn must be a list of {path, sha256}")
    found = at.pictures([image["path"] for image in images])
    for image, stored in zip(found, images, strict=True):
        if image.sha256 != stored["sha256"]:
            raise RowError(f"picture {stored['path']} has other bytes than its sha256 says")
    return found
