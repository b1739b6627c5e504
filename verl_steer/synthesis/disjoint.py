"""Do split files overlap? By seed, picture, text, and nearly the same text; read from the files as they are.

The cluster of a row is `meta.source_id` (the published question), or `meta.seed_id`, or its id where it has neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_steer.data.formats import read_any
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import AnyRow
from verl_steer.data.validate import turns_of
from verl_steer.synthesis.candidate import origin_of
from verl_steer.synthesis.dedup import Mark, mark
from verl_steer.synthesis.seen import Seen
from verl_steer.synthesis.selection_config import SelectionConfig

_EXAMPLES = 20


@dataclass(frozen=True)
class Overlap:
    """Two rows of two files that should not stand in both."""

    rule: str
    file: str
    row: str
    other_file: str
    other: str

    def __str__(self) -> str:
        return f"{self.rule}: row {self.row!r} of {self.file} and row {self.other!r} of {self.other_file}"


@dataclass
class Disjointness:
    """What was found.

    Attributes:
        rows: Rows read, by file.
        overlaps: Rows that meet a row of an earlier file, by rule; a row counts once for each rule and file.
        examples: The first of them.
    """

    rows: dict[str, int] = field(default_factory=dict)
    overlaps: Counter[str] = field(default_factory=Counter)
    examples: list[Overlap] = field(default_factory=list)


def check(
    paths: Sequence[Path], config: SelectionConfig, progress: Callable[[int], None] = lambda rows: None
) -> Disjointness:
    """Compares every row of each file with all rows of the files before it.

    Args:
        paths: Splits, or files that `read_any` reads. Pictures are held out of bench rows alone.
        config: `without` and `near` are used.
        progress: Called with the rows of each step.

    Raises:
        DataError: A row cannot be read, or there are not two different files.
    """
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise DataError("give at least two files, each of them once")
    found = Disjointness()
    before: list[tuple[Path, Seen]] = []
    for path in paths:
        split, rows = read_any(path)
        seen = Seen(config, split)
        found.rows[str(path)] = 0
        for row in rows:
            if isinstance(row, RowError):
                raise DataError(f"{path}: {row}; run `verl-steer data validate` first")
            one = _mark(row, config.near.words)
            signature = seen.signature(one)
            for earlier, other in before:
                for rule, repeated in other.overlaps(one, signature, split):
                    found.overlaps[rule] += 1
                    if len(found.examples) < _EXAMPLES:
                        found.examples.append(Overlap(rule, str(path), one.id, str(earlier), repeated))
            seen.add(one, signature)
            found.rows[str(path)] += 1
            progress(1)
        before.append((path, seen))
    return found


def _mark(row: AnyRow, words: int) -> Mark:
    return mark(row.id, origin_of(row.meta, row.id), turns_of(row), words, _text(row.meta, "picture"))


def _text(meta: Mapping[str, Any], key: str) -> str:
    value = meta.get(key)
    return value if isinstance(value, str) else ""
