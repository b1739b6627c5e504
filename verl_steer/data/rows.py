"""Script <-> parquet row: the one place that knows how a seed lies in a file.

verl's data set hands every column of a row to every rollout and insists that `images` holds exactly
the pictures whose `<image>` stands in `prompt`. So a row carries the first turn the way verl wants
it, the whole script as one JSON string in `steer`, and pictures of later turns in a column that verl
does not look at. Both directions check everything they rely on: a row that cannot become a
dialogue must be found before training starts, by its index and its column.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_steer.dialogue import MAX_TURNS, ImageRef, Kind, Script, UserTurn
from verl_steer.whole import replacing

IMAGE = "<image>"
# verl's data set splits contents at these, so text that holds one would be read as media.
PLACEHOLDER = re.compile(r"<image>|<video>|<audio>")

IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("sha256", pa.string())]))
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("agent_name", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("images", IMAGES),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string())])),
        ("steer", pa.string()),
        ("later_images", IMAGES),
    ]
)

Row = dict[str, Any]


class DataError(ValueError):
    """A file, a source or a setting as a whole cannot be used; nothing has been written."""


class RowError(ValueError):
    """A row or a script that cannot be converted; the message names the place and the fault."""


class MissingPicture(RowError):
    """There is no file at the path of a picture; once it is there, the row may be good."""


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """What Arrow says of a damaged file does not name it.

    Raises:
        DataError: The file, and what is wrong with it.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def script_to_row(script: Script, index: int, split: str) -> Row:
    """Lays a script out as one row of `SCHEMA`.

    Args:
        script: The script; its texts hold no media placeholder (pictures are in `UserTurn.images`).
        index: Position in the split; verl logs it and our records name it.
        split: "sft", "rl", "val", ...

    Raises:
        RowError: A text holds a media placeholder, or `meta` cannot be written as JSON.
    """
    where = f"seed {script.seed_id!r}"
    for name, text in [("system", script.system), *((f"turn {t}", u.text) for t, u in enumerate(script.turns, 1))]:
        if found := PLACEHOLDER.search(text):
            raise RowError(
                f"{where}: {name} holds the placeholder {found.group()} as text; "
                "put pictures into UserTurn.images and neutralise the literal text"
            )
    first = script.turns[0]
    prompt = [{"role": "system", "content": script.system}] if script.system else []
    prompt.append({"role": "user", "content": IMAGE * len(first.images) + first.text})
    plan = {
        "seed_id": script.seed_id,
        "kind": script.kind.value,
        "category": script.category,
        "source": script.source,
        "system": script.system,
        "meta": script.meta,
        "turns": [{"text": u.text, "images": len(u.images)} for u in script.turns],
    }
    try:
        steer = json.dumps(plan, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}: meta cannot be written as JSON: {error}") from error
    return {
        "data_source": f"verl_steer/{script.source or 'script'}",
        "agent_name": "steer",
        "prompt": prompt,
        "images": image_column(first.images),
        "ability": "alignment",
        "reward_model": {"style": "tutor", "ground_truth": ""},
        "extra_info": {"index": index, "split": split},
        "steer": steer,
        "later_images": image_column(image for turn in script.turns[1:] for image in turn.images),
    }


def row_to_script(row: Mapping[str, Any]) -> Script:
    """Reads a script back and checks that the row's columns agree with each other.

    Args:
        row: A row as pyarrow, pandas or `datasets` gives it (lists may be arrays).

    Raises:
        RowError: Something is missing or disagrees, e.g. the number of `<image>` and of pictures.
    """
    where = _place(row)
    plan = _plan(row, where)
    turns_plan = plan["turns"]
    first_images = read_images(row.get("images"), f"{where}: column images")
    later_images = read_images(row.get("later_images"), f"{where}: column later_images")
    counts = [turn["images"] for turn in turns_plan]
    for column, have, want in [
        ("images", len(first_images), counts[0]),
        ("later_images", len(later_images), sum(counts[1:])),
    ]:
        if have != want:
            raise RowError(f"{where}: column {column} holds {have} picture(s), the script's turns ask for {want}")
    _check_prompt(row, plan, len(first_images), where)
    pool = iter(first_images + later_images)
    turns = tuple(UserTurn(t["text"], tuple(next(pool) for _ in range(t["images"]))) for t in turns_plan)
    return Script(
        seed_id=plan["seed_id"],
        kind=Kind(plan["kind"]),
        turns=turns,
        category=plan.get("category", ""),
        source=plan.get("source", ""),
        system=plan.get("system", ""),
        meta=plan.get("meta", {}),
    )


def write_rows(rows: Iterable[Row], path: str | os.PathLike[str]) -> int:
    """Writes rows as parquet with the fixed schema; returns how many.

    The file appears whole or not at all: it is written beside its place and renamed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    with replacing(target) as temporary:
        pq.write_table(table, temporary)
    return int(table.num_rows)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Reads what `write_rows` wrote."""
    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


def _place(row: Mapping[str, Any]) -> str:
    info = row.get("extra_info")
    index = info.get("index") if isinstance(info, Mapping) else None
    return "row" if index is None else f"row {index}"


def _plan(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parses and checks the `steer` column; names the seed in every later message."""
    raw = row.get("steer")
    if not isinstance(raw, str):
        raise RowError(
            f"{where}: column steer must be a JSON string, found {type(raw).__name__}; columns: {sorted(row)}"
        )
    try:
        plan = json.loads(raw)
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: column steer is not JSON: {error}") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("seed_id"), str) or not plan["seed_id"]:
        raise RowError(f"{where}: column steer needs a JSON object with a non-empty string seed_id")
    where = f"{where} (seed {plan['seed_id']!r})"
    kinds = [kind.value for kind in Kind]
    if plan.get("kind") not in kinds:
        raise RowError(f"{where}: steer.kind is {plan.get('kind')!r}, must be one of {kinds}")
    for key, kind in [("category", str), ("source", str), ("system", str), ("meta", dict)]:
        if not isinstance(plan.get(key, kind()), kind):
            raise RowError(f"{where}: steer.{key} must be a {kind.__name__}, found {type(plan[key]).__name__}")
    turns = plan.get("turns")
    if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_TURNS:
        found = len(turns) if isinstance(turns, list) else type(turns).__name__
        raise RowError(f"{where}: steer.turns must be a list of 1..{MAX_TURNS} user turns, found {found}")
    for t, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
            raise RowError(f"{where}: steer.turns[{t}] needs a string text")
        if type(turn.get("images", 0)) is not int or turn.get("images", 0) < 0:
            raise RowError(f"{where}: steer.turns[{t}].images must be a count, found {turn['images']!r}")
        turn.setdefault("images", 0)
        if placeholder := PLACEHOLDER.search(turn["text"]):
            raise RowError(f"{where}: steer.turns[{t}].text holds the placeholder {placeholder.group()} as text")
    return plan


def image_column(images: Iterable[ImageRef]) -> list[Row]:
    """Pictures as a value of an `IMAGES` column."""
    return [{"bytes": image.data, "sha256": image.sha256} for image in images]


def read_images(column: Any, where: str) -> list[ImageRef]:
    """The inverse of `image_column`; a digest that is there must be that of the bytes.

    Raises:
        RowError: A picture without bytes, or bytes that have changed since they were written.
    """
    if column is None:
        return []
    images = []
    for n, image in enumerate(column, 1):
        data = image.get("bytes") if isinstance(image, Mapping) else None
        if not isinstance(data, bytes) or not data:
            raise RowError(f"{where}: picture {n} must be {{'bytes': encoded image}} with at least one byte")
        images.append(ImageRef(data))
        if image.get("sha256") not in (None, images[-1].sha256):
            raise RowError(
                f"{where}: picture {n} has other bytes than its sha256 says; the file was changed or damaged"
            )
    return images


def _check_prompt(row: Mapping[str, Any], plan: Mapping[str, Any], n_images: int, where: str) -> None:
    """The prompt column is what verl tokenises; it must say what the script says."""
    where = f"{where} (seed {plan['seed_id']!r}): column prompt"
    prompt = row.get("prompt")
    messages: Sequence[Any] = [] if prompt is None else list(prompt)
    if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in messages):
        raise RowError(f"{where} must be a non-empty list of {{role, content}} with string contents")
    want_roles = ["system", "user"] if plan.get("system") else ["user"]
    if (roles := [m.get("role") for m in messages]) != want_roles:
        raise RowError(f"{where} has the roles {roles}, the script asks for {want_roles}")
    found = sum(m["content"].count(IMAGE) for m in messages)
    if found != n_images:
        raise RowError(f"{where} holds {found} {IMAGE} for {n_images} picture(s) in column images")
    if messages[-1]["content"].replace(IMAGE, "").strip() != plan["turns"][0]["text"].strip():
        raise RowError(f"{where}: the user message is not the first turn of steer.turns")
    if plan.get("system") and messages[0]["content"] != plan["system"]:
        raise RowError(f"{where}: the system message is not steer.system")
