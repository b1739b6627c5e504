"""The account of a selection: what each rule removed, what is missing, and where every candidate ended."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_steer.data.rows import DataError
from verl_steer.data.wording import cell
from verl_steer.synthesis.pick import CHOSEN, NOT_NEEDED, class_of, classes
from verl_steer.synthesis.selection_config import SPLITS, SWITCHES, SelectionConfig
from verl_steer.synthesis.spool import Entry

#: What can remove a row: the rules that can be turned off, and what lies in the nature of a file.
REMOVALS = ("no_dialogue", *SWITCHES, "same_id", "unwritable")


@dataclass(frozen=True)
class SplitReport:
    """One split: candidates = chosen + not needed + removed, always.

    Attributes:
        removed: Rows by the rule that removed them, in the order in which a row meets the rules.
        turns: Chosen rows by number of user turns.
        missing: What was wanted and is not there, in sentences; empty: the split is complete.
        notes: What a reader should know besides.
        sha256: Of the written file, or "".
    """

    name: str
    candidates: int
    wanted: int
    chosen: int
    not_needed: int
    removed: dict[str, int]
    turns: dict[int, int]
    kinds: dict[str, int]
    mean_wanted: float | None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def mean_turns(self) -> float:
        """Average number of user turns; 0 of nothing."""
        return sum(t * n for t, n in self.turns.items()) / max(1, self.chosen)


@dataclass(frozen=True)
class SelectionReport:
    """The whole selection.

    Attributes:
        candidates: Candidates that came in.
        used: Those that became a row of some split.
        splits: One report a split, in the order in which they picked.
        compared: Rows of the written files that were read back and compared with the other files: none overlaps.
    """

    candidates: int
    used: int
    splits: tuple[SplitReport, ...]
    compared: int = 0

    @property
    def missing(self) -> tuple[str, ...]:
        """What was wanted and is not there."""
        return tuple(line for split in self.splits for line in split.missing)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"splits": [asdict(s) | {"mean_turns": round(s.mean_turns, 4)} for s in self.splits]}

    def removals(self) -> Iterator[tuple[str, str, int]]:
        """(split, what became of rows, how many), zeros left out."""
        for split in self.splits:
            for what, rows in {**split.removed, NOT_NEEDED: split.not_needed, CHOSEN: split.chosen}.items():
                if rows:
                    yield split.name, what, rows

    def table(self) -> Any:
        """The removals as a rich table, a column a split."""
        from rich.table import Table

        table = Table(title=f"{self.candidates} candidates, {self.used} used")
        table.add_column("", no_wrap=True)
        for split in self.splits:
            table.add_column(split.name, justify="right")
        _line(table, "wanted", [str(s.wanted) for s in self.splits])
        for rule in REMOVALS:
            if any(s.removed.get(rule) for s in self.splits):
                _line(table, f"- {rule}", [str(s.removed.get(rule, 0) or "") for s in self.splits])
        _line(table, "- not needed", [str(s.not_needed) for s in self.splits])
        table.add_section()
        _line(table, "chosen", [str(s.chosen) for s in self.splits])
        _line(table, "average turns", [f"{s.mean_turns:.2f}" for s in self.splits])
        if any(s.mean_wanted is not None for s in self.splits):
            _line(table, "  wanted", ["" if s.mean_wanted is None else f"{s.mean_wanted:.2f}" for s in self.splits])
        for kind in sorted({kind for s in self.splits for kind in s.kinds}):
            _line(table, kind, [str(s.kinds.get(kind, 0)) for s in self.splits])
        return table


class TooFew(DataError):
    """Splits would be smaller than wanted; nothing was written. The account is in `report`."""

    def __init__(self, report: SelectionReport) -> None:
        self.report = report
        super().__init__(
            "; ".join(report.missing)
            + "; nothing was written: make more candidates, ask for fewer rows, turn off or relax the rule that removed "
            "most, or set selection.allow_short=true to write what there is"
        )


def report_split(split: str, entries: Sequence[Entry], config: SelectionConfig) -> SplitReport:
    """The account of one split, from the fate of every candidate."""
    wanted = config.split(split)
    fates = Counter(entry.fate[split][0] for entry in entries)
    chosen = [entry for entry in entries if entry.fate[split][0] == CHOSEN]
    turns = Counter(entry.turns[split] for entry in chosen)
    missing, notes = _gaps(split, entries, config)
    return SplitReport(
        name=split,
        candidates=len(entries),
        wanted=wanted.size,
        chosen=len(chosen),
        not_needed=fates[NOT_NEEDED],
        removed={rule: fates[rule] for rule in REMOVALS if fates[rule]},
        turns=dict(sorted(turns.items())),
        kinds=dict(sorted(Counter(entry.kind.value for entry in chosen).items())),
        mean_wanted=wanted.mean_turns,
        missing=tuple(missing),
        notes=tuple(notes),
    )


def _gaps(split: str, entries: Sequence[Entry], config: SelectionConfig) -> tuple[list[str], list[str]]:
    """What is missing, and what is worth a note."""
    wanted = config.split(split)
    missing, notes = [], []
    for name, rows in classes(wanted).items():
        of_class = [entry for entry in entries if class_of(entry.kind, wanted) == name]
        fates = Counter(entry.fate[split][0] for entry in of_class)
        if (got := fates.pop(CHOSEN, 0)) < rows:
            what = "rows" if name == "any" else f"{name} rows"
            why = ", ".join(f"{rule} {n}" for rule, n in fates.most_common()) or "nothing"
            missing.append(
                f"{split}: {got} of {rows} {what}, {rows - got} are missing; of {len(of_class)} candidates the rules "
                f"removed: {why}"
            )
    drawable = {e.turns[split] for e in entries if e.place and e.fate[split][0] in (CHOSEN, NOT_NEEDED)}
    met = {e.turns[split] for e in entries if e.fate[split][0] == CHOSEN}
    if lost := sorted(drawable - met):
        notes.append(f"{split}: no row of {_list(lost)} turns was taken although there were some: size too small")
    if wanted.size and (never := sorted(set(range(wanted.min_turns, wanted.max_turns + 1)) - drawable)):
        notes.append(f"{split}: no candidate of {_list(never)} turns was left by the rules")
    chosen = [e.turns[split] for e in entries if e.fate[split][0] == CHOSEN]
    if wanted.mean_turns is not None and chosen:
        mean = sum(chosen) / len(chosen)
        if abs(mean - wanted.mean_turns) > 0.05:
            notes.append(f"{split}: {mean:.2f} turns on average, {wanted.mean_turns:.2f} wanted: lengths ran out")
    return missing, notes


def write_removals(report: SelectionReport, path: Path) -> None:
    """The table of removals as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("split", "what", "rows"))
        lines.writerows(report.removals())


def write_fates(entries: Iterable[Entry], path: Path) -> None:
    """Where each candidate ended, as CSV: a line a candidate, sorted; for each split its fate and the row it repeats."""
    rows = sorted(
        [
            cell(e.id),
            cell(e.cluster),
            e.kind.value,
            *(cell(value) for split in SPLITS for value in e.fate.get(split, ("", ""))),
        ]
        for e in entries
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("id", "cluster", "kind", *(name for s in SPLITS for name in (s, f"{s}_repeats"))))
        lines.writerows(rows)


def _line(table: Any, what: str, values: Sequence[str]) -> None:
    table.add_row(what, *values)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
