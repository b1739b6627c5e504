"""Candidates into STEER-SFT, STEER-RL and STEER-Bench: rules, de-duplication, the draw, files and their account.

One pass over the candidates: each meets the rules of every split, and those that a split may have go to a spool on
disk; in memory stays what decides (ids, lengths, hashes). Then the splits pick (`pick.py`). The outcome depends on
the candidates and the settings, not on the order in which they come. Everything is written into a folder beside
the result and renamed at the end, `selection.json` last: if that is there, the rest is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from verl_steer.data.card import write_card
from verl_steer.data.parts import file_hash
from verl_steer.data.rows import DataError
from verl_steer.data.schemas import AnyRow
from verl_steer.synthesis.candidate import Candidate
from verl_steer.synthesis.disjoint import check
from verl_steer.synthesis.pick import CHOSEN, Picker
from verl_steer.synthesis.report import SelectionReport, TooFew, report_split, write_fates, write_removals
from verl_steer.synthesis.rules import removed_by, turns_in
from verl_steer.synthesis.selection_config import SPLITS, SelectionConfig
from verl_steer.synthesis.spool import Entry, Spool
from verl_steer.synthesis.written import as_row, write_split

Progress = Callable[[str, int], None]


def select_splits(
    candidates: Iterable[Candidate],
    config: SelectionConfig,
    out: Path,
    progress: Progress = lambda stage, step: None,
) -> SelectionReport:
    """Chooses and writes the splits.

    Args:
        candidates: In any order; gone through once.
        config: The settings.
        out: Folder; gets `sft.parquet`, `rl.parquet` and `bench.parquet` (those whose size is not 0), a `.card` folder
            for each, `removals.csv`, `candidates.csv` and `selection.json`.
        progress: Called with the stage ("rules", "draw rl", "write", ...) and the rows just done.

    Returns:
        The account, as written to `selection.json`.

    Raises:
        TooFew: A split would be smaller than wanted and `allow_short` is off; nothing is written, and the error holds
            the account.
        DataError: A candidate has no cluster, datasketch is not installed, or the written files overlap; nothing is published.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = [split for split in config.order if config.split(split).size]
    with Spool(out) as spool:
        entries = [_entry(c, config, wanted, spool) for c in _counted(candidates, lambda: progress("rules", 1))]
        chosen = _draw(entries, wanted, spool, config, progress)
        report = SelectionReport(
            candidates=len(entries),
            used=sum(any(fate == (CHOSEN, "") for fate in entry.fate.values()) for entry in entries),
            splits=tuple(report_split(split, entries, config) for split in wanted),
        )
        if report.missing and not config.allow_short:
            raise TooFew(report)
        stage = out / ".selection.tmp"
        shutil.rmtree(stage, ignore_errors=True)  # what a killed run left
        stage.mkdir()
        try:
            report = _write(stage, report, chosen, spool, config, progress)
            write_fates(entries, stage / "candidates.csv")
            _publish(stage, out)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return report


def _counted(candidates: Iterable[Candidate], tick: Callable[[], None]) -> Iterator[Candidate]:
    for candidate in candidates:
        yield candidate
        tick()


def _entry(candidate: Candidate, config: SelectionConfig, splits: Sequence[str], spool: Spool) -> Entry:
    """What the rules say of a candidate; kept on disk if a split may have it."""
    script = candidate.script
    if not candidate.cluster:
        raise DataError(
            f"candidate {script.id!r} has no cluster; without its seed it cannot be kept out of other splits"
        )
    entry = Entry(
        id=script.id,
        cluster=candidate.cluster,
        kind=script.kind,
        key=hashlib.sha256(f"{config.seed}\n{script.id}".encode()).digest()[:16],
        turns={split: turns_in(candidate, split) for split in splits},
    )
    for split in splits:
        if rule := removed_by(candidate, config, split):
            entry.fate[split] = (rule, "")
    if len(entry.fate) < len(splits):
        entry.place = spool.put(candidate)
    return entry


def _draw(
    entries: Sequence[Entry], splits: Sequence[str], spool: Spool, config: SelectionConfig, progress: Progress
) -> dict[str, list[Entry]]:
    """Every split picks in turn; what the picker holds for it is freed before the files are compared."""
    picker = Picker(spool, config)
    chosen = {}
    for split in splits:
        able = [entry for entry in entries if split not in entry.fate]
        chosen[split] = picker.pick(split, able, partial(progress, f"draw {split}"))
    return chosen


def _write(
    stage: Path,
    report: SelectionReport,
    chosen: Mapping[str, Sequence[Entry]],
    spool: Spool,
    config: SelectionConfig,
    progress: Progress,
) -> SelectionReport:
    """Files, cards and account into the staging folder; the written files are read back and compared."""
    paths = {split: stage / f"{split}.parquet" for split in chosen}
    for split, entries in chosen.items():
        rows = (as_row(spool.get(entry), split, index) for index, entry in enumerate(entries))
        write_split(paths[split], split, _counted_rows(rows, progress))
        write_card(paths[split])
    found = check(list(paths.values()), config, lambda rows: progress("check", rows)) if len(paths) > 1 else None
    if found and found.overlaps:
        raise DataError(
            f"the splits overlap ({dict(found.overlaps)}), e.g. {found.examples[0]}; nothing was published; this "
            "should not be possible, please report it"
        )
    splits = tuple(dataclasses.replace(one, sha256=file_hash(paths[one.name])) for one in report.splits)
    report = dataclasses.replace(report, splits=splits, compared=sum(found.rows.values()) if found else 0)
    write_removals(report, stage / "removals.csv")
    account = {**report.to_json(), "settings": dataclasses.asdict(config)}
    (stage / "selection.json").write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
    return report


def _counted_rows(rows: Iterable[AnyRow], progress: Progress) -> Iterator[AnyRow]:
    for row in rows:
        yield row
        progress("write", 1)


def _publish(stage: Path, out: Path) -> None:
    """Renames everything into place, the account last; an earlier one is gone before its files are.

    A split of the earlier one that this one leaves out goes too: nobody has compared it with the new ones.
    """
    (out / "selection.json").unlink(missing_ok=True)
    for old in (out / f"{split}.parquet" for split in SPLITS):
        if not (stage / old.name).exists():
            old.unlink(missing_ok=True)
            shutil.rmtree(old.with_name(f"{old.name}.card"), ignore_errors=True)
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == "selection.json"):
        target = out / path.relative_to(stage)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
