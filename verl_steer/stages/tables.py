"""Figures and tables of the evidence page as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_UP, Context

from verl_steer.stages.contrasts import OUTCOMES, Contrast, Found, mean_interval

UNKNOWN = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float, outcome: str, sign: str = "") -> str:
    """A value of an outcome: points of a hundred, or three decimals; what rounds to 0 has no sign of its own."""
    scaled, places = (100 * value, 1) if OUTCOMES[outcome][2] else (value, 3)
    return f"{round(scaled, places) + 0.0:{sign}.{places}f}"


def at_most(value: float) -> str:
    """An upper bound to one digit: rounded to the nearest it could lie below what it bounds."""
    return f"{Context(prec=1, rounding=ROUND_UP).create_decimal(repr(float(value))):.0e}"


def interval(low: float, high: float, outcome: str) -> str:
    """An interval, or that there is none."""
    if math.isinf(low):
        return "[one seed]"
    return f"[{number(low, outcome)}, {number(high, outcome)}]"


def mean(values: Mapping[int, float], outcome: str) -> str:
    """The mean over seeds with its interval, which a rate's scale ends."""
    centre, low, high = mean_interval(values)
    if math.isnan(centre):
        return UNKNOWN
    if OUTCOMES[outcome][2] and not math.isinf(low):
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{number(centre, outcome)} {interval(low, high, outcome)}"


def difference(found: tuple[float, float, float], outcome: str) -> str:
    """A difference with its interval; `found` holds the estimate, the lower and the upper end."""
    if math.isnan(found[0]):
        return UNKNOWN
    return f"{number(found[0], outcome, '+')} {interval(*found[1:], outcome)}"


def contrasts(found: Sequence[Found], corrected: bool = False) -> str:
    """Differences over seeds; with goals, whether they are reached; `corrected`: with Holm's p."""
    head = ["difference", "outcome", "seeds", "estimate", "95 % interval", "p (sign flip)"]
    head += ["p (Holm)"] if corrected else []
    goals = any(f.contrast.goal is not None for f in found)
    head += ["goal", "reached"] if goals else []
    rows = []
    for f in found:
        c = f.contrast
        row = [f"{c.second} − {c.first}", OUTCOMES[c.outcome][0], str(len(f.seeds))]
        if f.seeds:
            row += [number(f.value, c.outcome, "+"), interval(f.low, f.high, c.outcome), _p(f.p)]
        else:
            row += ["missing", UNKNOWN, UNKNOWN]
        row += [_p(f.holm)] if corrected else []
        if goals:
            row += [_goal(c), UNKNOWN if len(f.seeds) < 2 or c.goal is None else "yes" if reached(f) else "no"]
        rows.append(row)
    floors = [f"{2 / 2**n:.3g} with {n} seeds" for n in sorted({len(f.seeds) for f in found if f.seeds})]
    note = f"\n\nThe least p value there can be: {', '.join(floors)}." if floors else ""
    return table(head, rows) + note


def _p(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{value:.4f}"


def _goal(contrast: Contrast) -> str:
    if contrast.goal is None:
        return UNKNOWN
    return "> 0" if contrast.goal == 0 else f"≥ {number(contrast.goal, contrast.outcome)}"


def reached(found: Found) -> bool:
    """Whether the estimate is at the goal, the interval above 0 and p < .05, all together."""
    goal = found.contrast.goal or 0.0
    return found.value >= goal and found.low > 0 and found.p < 0.05
