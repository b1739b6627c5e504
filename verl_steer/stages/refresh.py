"""Adds to results of before what they did not hold yet, from the bench runs and records that they came from.

A figure that a result already holds must come out as it stands: a change of code that would change one is an error, not an update.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_steer.stages import result
from verl_steer.stages.met import met_in
from verl_steer.stages.plan import Place


def refresh(root: Path, results: Path) -> tuple[list[Path], list[str]]:
    """Works out again what bench runs and records decide of every result.

    Args:
        root: The experiment's folder (`Runner.root`).
        results: Folder of result files.

    Returns:
        The files that were written anew, and the names of results whose bench run is not there.

    Raises:
        ResultError: A figure comes out otherwise than it stands.
    """
    written: list[Path] = []
    absent: list[str] = []
    for old in result.read_all(results):
        place = Place(root, -1 if old.seed is None else old.seed)
        played = root / "constants" / old.arm if old.seed is None else place.played(old.arm)
        if not played.is_dir():
            absent.append(old.name)
            continue
        fields = result.from_bench(played, place.bench)
        records = place.arm(old.arm) / "records"
        if old.curve and records.is_dir():
            fields |= {"curve": result.curve_of(records), "met": met_in(records)}
        new = result.Result(**(old.model_dump() | fields))
        if wrong := _differing(old.model_dump(exclude_defaults=True), new.model_dump()):
            raise result.ResultError(
                f"{old.name}: {', '.join(wrong)} would come out otherwise than it stands; is {root} the folder that it came from?"
            )
        if new != old:
            written.append(result.write(new, results))
    return written, absent


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Paths of values in `old` that `new` lacks or has otherwise; what only `new` has is no difference."""
    found: list[str] = []
    for key, value in old.items():
        there = new.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            found += _differing(value, there, f"{path}{key}.")
        elif value != there:
            found.append(f"{path}{key}")
    return found
