"""Do two split files overlap? By seed, picture, text, and nearly the same text; read from the files as they are.

The seed of a row is `meta.seed_id`, or its id where it has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_steer.data.formats import read_any
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import AnyRow
from verl_steer.data.validate import turns_of
from verl_steer.synthesis.dedup import Mark, mark
from verl_steer.synthesis.seen import Seen
from verl_steer.synthesis.selection_config import SelectionConfig

_EXAMPLES = 20


@dataclass(frozen=True)
class Overlap:
    """Two rows of two files that should not stand in both."""

    rule: str
    split: str
    row: str
    other_split: str
    other: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.split} row {self.row!r} and {self.other_split} row {self.other!r}"


@dataclass
class Disjointness:
    """What was found.

    Attributes:
        rows: Rows read, by split.
        overlaps: Rows that meet an earlier file's row, by rule.
        examples: The first of them.
    """

    rows: dict[str, int] = field(default_factory=dict)
    overlaps: Counter[str] = field(default_factory=Counter)
    examples: list[Overlap] = field(default_factory=list)


def check(
    paths: Mapping[str, Path], config: SelectionConfig, progress: Callable[[int], None] = lambda rows: None
) -> Disjointness:
    """Compares every row of each file with all rows of the files before it.

    Args:
        paths: Split name -> file. Pictures are held out of the split named "bench" alone.
        config: `off` and `near` are used.
        progress: Called with the rows of each step.

    Raises:
        DataError: A row cannot be read.
    """
    found = Disjointness()
    before: list[Seen] = []
    for split, path in paths.items():
        seen = Seen(config, split)
        for row in _rows(path):
            one = _mark(row, config.near.words)
            signature = seen.signature(one)
            for other in before:
                for rule, repeated in other.overlaps(one, signature, split):
                    found.overlaps[rule] += 1
                    if len(found.examples) < _EXAMPLES:
                        found.examples.append(Overlap(rule, split, one.id, other.split, repeated))
            seen.add(one, signature)
            found.rows[split] = found.rows.get(split, 0) + 1
            progress(1)
        before.append(seen)
    return found


def _rows(path: Path) -> Any:
    _, rows = read_any(path)
    for row in rows:
        if isinstance(row, RowError):
            raise DataError(f"{path}: {row}; run `verl-steer data validate` first")
        yield row


def _mark(row: AnyRow, words: int) -> Mark:
    seed, origin = row.meta.get("seed_id"), row.meta.get("picture")
    return mark(
        row.id,
        seed if isinstance(seed, str) and seed else row.id,
        turns_of(row),
        words,
        origin if isinstance(origin, str) else "",
    )
