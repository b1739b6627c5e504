"""The line that every benchmark prints last."""

from __future__ import annotations

import json
from typing import Any


def last_line(
    name: str, value: float, unit: str, bound: float, goal: str, ok: bool, details: dict[str, Any], digits: int = 3
) -> int:
    """Prints the benchmark's JSON line; returns the exit status."""
    line = {
        "name": name,
        "value": round(value, digits),
        "unit": unit,
        "bound": round(bound, digits),
        "ratio": round(value / bound, 3) if bound else None,
        "goal": goal,
        "ok": ok,
        "details": details,
    }
    print(json.dumps(line))
    return 0 if ok else 1
