"""CoSafe (Yu et al., EMNLP 2024): multi-turn, text-only dialogues whose last user turn is the unsafe one.

Columns: JSONL, each line a list of {role, content}; the file's stem is the category.
Split: the source has one. Licence: none given upstream. Kind: obfuscated-risk.
The scripts are the user turns; the assistant turns of the source are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_steer.data.rows import RowError, script_to_row, write_rows
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.records import write_jsonl

SOURCE = "cosafe"


@dataclass(frozen=True)
class Account:
    """read = written + rejected, always."""

    read: int
    written: int
    rejected: int
    rejected_path: Path


def convert(sources: Iterable[Path], out: Path, image: Path | None = None, image_turn: int = 1) -> Account:
    """Converts CoSafe files to one parquet file of RL rows.

    Args:
        sources: JSONL files, or folders of them.
        out: Parquet file; rejected lines go to `OUT.rejected.jsonl` beside it.
        image: A picture shown in every dialogue (the source is text only), or None.
        image_turn: 1-based turn that shows it; a dialogue without that turn is rejected.

    Raises:
        FileNotFoundError: A source or the image does not exist.
    """
    picture = ImageRef(image.read_bytes()) if image else None
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for path, number, line in _lines(sources):
        try:
            script = _script(f"{SOURCE}-{path.stem}-{number}", path.stem, line, picture, image_turn)
            rows.append(script_to_row(script, len(rows), "rl"))
        except RowError as error:
            rejected.append({"file": path.name, "line": number, "reason": str(error)})
    rejected_path = out.with_suffix(".rejected.jsonl")
    write_rows(rows, out)
    write_jsonl(rejected_path, rejected)
    return Account(len(rows) + len(rejected), len(rows), len(rejected), rejected_path)


def _lines(sources: Iterable[Path]) -> Iterator[tuple[Path, int, str]]:
    for source in sources:
        files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
        if not files:
            raise FileNotFoundError(f"{source} holds no .jsonl file")
        for path in files:
            for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
                if line.strip():
                    yield path, number, line


def _script(seed_id: str, category: str, line: str, picture: ImageRef | None, image_turn: int) -> Script:
    try:
        messages = json.loads(line)
        texts = [str(m["content"]) for m in messages if m["role"] == "user"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RowError(f"not a list of {{role, content}}: {error}") from error
    if picture is not None and image_turn > len(texts):
        raise RowError(f"has {len(texts)} user turns, the picture is wanted in turn {image_turn}")
    try:
        turns = tuple(
            UserTurn(text, (picture,) if picture is not None and t == image_turn else ())
            for t, text in enumerate(texts, 1)
        )
        return Script(seed_id=seed_id, kind=Kind.OBFUSCATED, turns=turns, category=category, source=SOURCE)
    except ValueError as error:
        raise RowError(str(error)) from error
