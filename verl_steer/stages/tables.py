"""Figures and tables of the evidence page as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from verl_steer.stages.contrasts import OUTCOMES


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float, outcome: str, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if OUTCOMES[outcome][2] else f"{value:{sign}.3f}"


def interval(low: float, high: float, outcome: str) -> str:
    if math.isinf(low):
        return "[one seed]"
    return f"[{number(low, outcome)}, {number(high, outcome)}]"
