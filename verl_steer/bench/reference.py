"""The paper's result rows, with the number of the table each stands in (arXiv 2604.16358).

The tables disagree with themselves in places: full SaFeR-Steer on STEER-DyS is 49.40 in table 8 and 49.22 in tables
4, 5 and 9, its averages differ with it, and two averages of table 8 are not the averages of their rows. Every number is
therefore kept as printed, with its table. They were measured on the paper's own bench, which was never released, by
another judge: something to stand beside, nothing to test against.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

AVERAGE = "Avg"
SINGLE_TURN, MULTI_TURN = 2, 3


@dataclass(frozen=True)
class PaperRow:
    """One cell of the paper: two pass rates in percent.

    Attributes:
        table: Number of the table.
        base_model: As the paper names it.
        group: base, static (trained on data of others), dynamic (on the paper's) or ablation.
        method: As the paper names it.
        subset: As the paper names it; "Avg" is the printed average.
        safe: Percent.
        helpful: Percent.
    """

    table: int
    base_model: str
    group: str
    method: str
    subset: str
    safe: float
    helpful: float


@lru_cache(maxsize=1)
def paper_rows() -> tuple[PaperRow, ...]:
    """All rows, in the order of the tables."""
    text = resources.files("verl_steer.bench").joinpath("paper_rows.csv").read_text(encoding="utf-8")
    return tuple(
        PaperRow(
            int(row["table"]),
            row["base_model"],
            row["group"],
            row["method"],
            row["subset"],
            float(row["safe"]),
            float(row["helpful"]),
        )
        for row in csv.DictReader(text.splitlines())
    )


def table(number: int) -> dict[tuple[str, str], dict[str, PaperRow]]:
    """A table as (base model, method) -> subset -> row.

    Raises:
        KeyError: The paper's results are in tables 2, 3, 4, 5, 8 and 9.
    """
    found: dict[tuple[str, str], dict[str, PaperRow]] = {}
    for row in paper_rows():
        if row.table == number:
            found.setdefault((row.base_model, row.method), {})[row.subset] = row
    if not found:
        raise KeyError(f"no table {number}; there are {sorted({row.table for row in paper_rows()})}")
    return found


def same_subset(ours: str, theirs: str) -> bool:
    """Whether two names mean one subset: case, signs and the paper's prefix STEER do not count."""
    return _plain(ours) == _plain(theirs)


def _plain(name: str) -> str:
    letters = "".join(c for c in name.lower() if c.isalnum())
    return letters.removeprefix("steer") or letters
