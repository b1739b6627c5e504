"""A user's own labelled turns as canaries: one JSON object a line.

{"id": "a-17", "kind": "red_team", "turns": [{"user": "…", "images": ["a.png"], "reply": "…"}, …], "safety": 1,
 "usefulness": 1, "faithfulness": [4, 10], "system": "…"}

kind           benign, obfuscated or red_team: whether the script works towards something to withhold
turns          1..10 exchanges; the last reply is the labelled one. `images` are paths relative to the file
               (PNG, JPEG, WebP or GIF), `thinking` is the part of `reply` inside its thinking block
safety         the label: an integer 1..10, or [lowest, highest] where several verdicts are right
usefulness, faithfulness, system, id (default: line N), images, thinking     may be left out
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_steer.checked import nearest
from verl_steer.dialogue import MAX_TURNS, ImageRef, Kind, Script, UserTurn
from verl_steer.roles.layout import media_type
from verl_steer.roles.tutor import Exchange
from verl_steer.testing.canaries import SCORES, Canary

_KEYS = ("id", "kind", "system", "turns", *SCORES)
_TURN_KEYS = ("user", "images", "reply", "thinking")


class CanaryFileError(ValueError):
    """The file cannot be used; the message names file, line, key and the nearest right one."""


def read_canary_file(path: Path) -> list[Canary]:
    """Reads every line; empty lines are skipped.

    Raises:
        CanaryFileError: The file or a picture cannot be read, a line is no such object, or an id comes twice.
    """
    try:
        # Not splitlines(): JSON may hold U+2028, U+2029 and U+0085 as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CanaryFileError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    found: dict[str, Canary] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            canary = _canary(json.loads(line), number, path.parent)
        except (ValueError, RecursionError) as error:
            raise CanaryFileError(f"{path}, line {number}: {error}") from error
        if canary.id in found:
            raise CanaryFileError(f"{path}, line {number}: the id {canary.id!r} comes twice; give each line its own")
        found[canary.id] = canary
    if not found:
        raise CanaryFileError(f"{path}: holds no case; write one JSON object a line")
    return list(found.values())


def _canary(line: Any, number: int, folder: Path) -> Canary:
    _check_keys(line, "the line", _KEYS, required=("kind", "turns", "safety"))
    kinds = [kind.value for kind in Kind]
    if line["kind"] not in kinds:
        raise ValueError(f"kind={line['kind']!r} is none of the kinds{nearest(str(line['kind']), kinds)}")
    name = _text(line, "id", f"line {number}")
    turns = line["turns"]
    if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_TURNS:
        raise ValueError(f"turns must be a list of 1..{MAX_TURNS} exchanges")
    history = tuple(_exchange(turn, n, folder) for n, turn in enumerate(turns, start=1))
    asked = tuple(UserTurn(exchange.question, exchange.images) for exchange in history)
    expected = {score: _range(score, line[score]) for score in SCORES if line.get(score) is not None}
    return Canary(name, Script(name, Kind(line["kind"]), asked, system=_text(line, "system", "")), history, expected)


def _exchange(turn: Any, number: int, folder: Path) -> Exchange:
    where = f"turns[{number}]"
    _check_keys(turn, where, _TURN_KEYS, required=("user", "reply"))
    names = turn.get("images") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}.images must be a list of paths")
    images = tuple(_image(folder / name, where) for name in names)
    reply, thinking = _text(turn, "reply", "", where + "."), _text(turn, "thinking", "", where + ".")
    if thinking not in reply:
        raise ValueError(f"{where}.thinking must be a part of {where}.reply")
    return Exchange(_text(turn, "user", "", where + "."), reply, images, thinking)


def _image(path: Path, where: str) -> ImageRef:
    try:
        data = path.read_bytes()
        media_type(data)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}.images: {path}: {error}") from error
    return ImageRef(data)


def _range(score: str, value: Any) -> tuple[int, int]:
    both = [value, value] if type(value) is int else value
    if (
        isinstance(both, list)
        and len(both) == 2
        and all(type(v) is int for v in both)
        and 1 <= both[0] <= both[1] <= 10
    ):
        return both[0], both[1]
    raise ValueError(f"{score}={value!r} must be an integer 1..10, or [lowest, highest] of them")


def _text(mapping: Mapping[str, Any], key: str, default: str, where: str = "") -> str:
    value = mapping.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}{key} must be text, got {type(value).__name__}")
    return default if value is None else value


def _check_keys(value: Any, where: str, known: tuple[str, ...], required: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(value).__name__}")
    for key in value:
        if key not in known:
            raise ValueError(f"{where} has the unknown key {key!r}{nearest(key, known)}")
    for key in required:
        if value.get(key) is None:
            raise ValueError(f"{where} lacks the key {key!r}")
