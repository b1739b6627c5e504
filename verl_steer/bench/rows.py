"""The rows of a bench: any split or exported file that holds questions, as scripts to play.

A single-turn suite is a bench whose rows have one turn; `verl-steer data convert SOURCE FILES --to bench` makes
either. A row that cannot be played keeps its place, with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from verl_steer.bench.files import BenchFile, Played
from verl_steer.bench.lines import BenchError
from verl_steer.checked import nearest
from verl_steer.data.formats import read_any
from verl_steer.data.images import SIZES, ImagePolicy, normalise
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import AnyRow, BenchRow, ScriptRow, to_script
from verl_steer.dialogue import ImageRef, Script
from verl_steer.roles.layout import media_type


@dataclass(frozen=True)
class Item:
    """One row of a bench.

    Attributes:
        script: What to ask; pictures as the model will see them.
        subset: Row of the result tables that it counts for.
        cluster, pair: See `files.Played`.
    """

    script: Script
    subset: str
    cluster: str
    pair: str | None


def describe(path: Path) -> BenchFile:
    """Name, digest and number of rows of a bench file.

    Raises:
        BenchError: It cannot be read, or its rows have no questions to ask.
    """
    try:
        kind, rows = read_any(path)
        if kind not in ("bench", "script", "rl"):
            raise DataError(f"{path} is a {kind} split; make a bench of it: verl-steer data convert … --to bench")
        count = sum(1 for _ in rows)
    except (DataError, OSError) as error:
        raise BenchError(f"bench file: {error}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BenchFile(file=str(path), sha256=digest, rows=count)


def items(path: Path, preset: str = "keep") -> Iterator[Item | Played]:
    """Every row in order: an `Item`, or the line of a rejected one.

    Args:
        path: A bench file.
        preset: "keep" shows pictures as they are stored, byte for byte; else a size of `data.images`.

    Raises:
        BenchError: The preset does not exist.
    """
    if preset not in SIZES:
        raise BenchError(f"--image-preset {preset!r} does not exist{nearest(preset, SIZES)}")
    _, rows = read_any(path)
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        name = f"row {number}"
        try:
            name = _free_id(row, number, seen)
            yield _item(row, preset)
        except RowError as error:
            yield Played(id=name, status="rejected", why=str(error))


def scripts(path: Path, preset: str = "keep") -> dict[str, Script]:
    """The playable scripts by id."""
    return {item.script.seed_id: item.script for item in items(path, preset) if isinstance(item, Item)}


def _free_id(row: AnyRow | RowError, number: int, seen: dict[str, int]) -> str:
    if isinstance(row, RowError):
        raise row
    if (first := seen.setdefault(row.id, number)) != number:
        raise RowError(f"row {number}: the id {row.id!r} is already taken by row {first}")
    return row.id


def _item(row: AnyRow | RowError, preset: str) -> Item:
    assert isinstance(row, ScriptRow), "describe() refuses other splits"
    script = to_script(row)
    if preset != "keep":
        policy = ImagePolicy(size=preset)
        turns = tuple(
            replace(turn, images=tuple(ImageRef(normalise(image.data, policy)) for image in turn.images))
            for turn in script.turns
        )
        script = replace(script, turns=turns)
    for image in (image for turn in script.turns for image in turn.images):
        try:
            media_type(image.data)
        except ValueError as error:  # no model can be shown it; one such row must not end the run
            raise RowError(
                f"row {row.id!r}: {error}; an --image-preset other than keep encodes pictures anew"
            ) from error
    pair = row.meta.get("pair")
    return Item(
        script,
        subset=row.subset if isinstance(row, BenchRow) else row.source,
        cluster=_cluster(row),
        pair=None if pair is None else str(pair),
    )


def _cluster(row: ScriptRow) -> str:
    """What rows share that are no independent draws: twins, a template with a picture, a question of the source in
    several forms, the picture of a seed of `synth build`, such a seed (it has up to three scripts), a picture.

    Where a seed came from goes before the seed: four variants of one published question are four seeds.
    """
    meta = row.meta
    picture = next((image.sha256 for turn in row.turns for image in turn.images), None)
    if meta.get("cluster") is not None:
        return str(meta["cluster"])
    if meta.get("template") is not None:
        return f"{meta['template']} × {picture[:12] if picture else 'no picture'}"
    # A build leaves `picture` empty for a seed without one.
    said = (meta.get("pair"), meta.get("source_id"), meta.get("picture") or None, meta.get("seed_id"), picture)
    return str(next((key for key in said if key is not None), row.id))
