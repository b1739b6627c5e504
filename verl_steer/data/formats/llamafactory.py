"""LLaMA-Factory: a JSON array of sharegpt dialogues, and its entry in dataset_info.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_steer.data.formats.pictures import PictureFolder
from verl_steer.data.rows import IMAGE, DataError
from verl_steer.data.schemas import SftRow
from verl_steer.whole import write_text

DROPS = ("id", "source", "licence", "category", "kind", "meta")
INDEX = "dataset_info.json"


def encode(row: SftRow, pictures: PictureFolder) -> dict[str, Any]:
    """One dialogue; pictures are paths, relative to the file (LLaMA-Factory's `media_dir`)."""
    messages = [{"role": "system", "content": row.system}] if row.system else []
    images: list[str] = []
    for turn in row.turns:
        images += [pictures.put(image) for image in turn.images]
        messages.append({"role": "user", "content": IMAGE * len(turn.images) + turn.text})
        messages.append({"role": "assistant", "content": turn.reply})
    return {"messages": messages, "images": images}


def add_to_index(path: Path) -> None:
    """Puts the file into the `dataset_info.json` beside it; other entries stay.

    Raises:
        DataError: The index that is there is not JSON.
    """
    index = path.parent / INDEX
    entries: dict[str, Any] = {}
    if index.is_file():
        try:
            entries = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{index} is not JSON ({error}); mend or remove it") from error
    entries[path.stem] = {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
    write_text(index, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
