"""Where the turns are in a response mask. Imports nothing, so that both ends of the plugin may use it."""

from __future__ import annotations

from collections.abc import Sequence


def turn_ends(mask: Sequence[int]) -> list[int]:
    """Index of the last token of each run of ones in `mask`, in order: one per assistant turn."""
    return [i for i, m in enumerate(mask) if m and (i + 1 == len(mask) or not mask[i + 1])]
