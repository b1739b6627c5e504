"""One small adapter for each published source; `get` finds one by name."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from verl_steer.data.rows import DataError

if TYPE_CHECKING:
    from verl_steer.data.sources.base import Source

NAMES = (
    "jailbreakv",
    "spa_vl",
    "beavertails_v",
    "geometry3k",
    "align_anything",
    "scienceqa",
    "vlsbench",
    "mm_safetybench",
    "vlguard",
    "safedialbench",
    "cosafe",
    "reference_rl",
    "reference_bench",
    "sharegpt",
)


def get(name: str) -> Source:
    """The source of that name.

    Raises:
        DataError: There is none; the nearest name is said.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), NAMES, n=1, cutoff=0.4)
        raise DataError(f"no source {name!r}{f'; did you mean {near[0]}?' if near else ''} (have: {', '.join(NAMES)})")
    found: Source = importlib.import_module(f"verl_steer.data.sources.{name}").SOURCE
    return found
