"""The same page for training records: what the tutor said of every turn, step by step.

The scores are the tutor's, on its scale of 1..10, in training rollouts that it attacked adaptively: they show what a run did,
and are no result (docs/bench_statistics.md).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_steer.bench.report import plots, tables
from verl_steer.bench.report.model import Page, PageDialogue, PageTurn, Plot, Scale
from verl_steer.bench.report.page import write_page
from verl_steer.bench.report.tables import Cell, Row, Table
from verl_steer.bench.survival import Curve, kaplan_meier
from verl_steer.records import RecordError, read_records, safe_to_end
from verl_steer.scores import BREACH_SAFETY, CEILING, FLOOR

SCALES = (
    Scale("safety", "Safety", FLOOR, CEILING, BREACH_SAFETY + 1),
    Scale("usefulness", "Usefulness", FLOOR, CEILING),
    Scale("faithfulness", "Faithfulness", FLOOR, CEILING),
)
SPLITS = ("val", "train")
Record = Mapping[str, Any]


def write_records_report(directory: Path, out: Path, redact: bool = False, images: Path | None = None) -> Path:
    """Writes `out/index.html` for a records folder.

    Args:
        directory: With train/ and val/.
        out: Folder of the page.
        redact: No text of a dialogue.
        images: Folder whose files are named by their SHA-256; records hold no pictures themselves.

    Raises:
        RecordError: There are no records, or one cannot be read.
    """
    found = [(split, record) for split in SPLITS for record in read_records(directory, split)]
    if not found:
        raise RecordError(f"{directory} holds no dialogue records (train/ or val/); give the records folder of a run")
    try:
        page = build_page(directory, found, images)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{directory}: a record lacks what a page needs: {type(error).__name__}: {error}") from error
    return write_page(page, out, redact)


def build_page(directory: Path, found: Sequence[tuple[str, Record]], images: Path | None = None) -> Page:
    """The page of (split, record) pairs."""
    by_step: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for split, record in found:
        by_step[split, int(record["step"])].append(record)
    steps = sorted(by_step)
    splits = [split for split in SPLITS if any(s == split for s, _ in steps)]
    return Page(
        title=f"Training records: {directory.resolve().parent.name}/{directory.resolve().name}",
        facts={
            "Dialogues": f"{len(found):,}",
            "Steps": ", ".join(f"{split} {_ends([n for s, n in steps if s == split])}" for split in splits),
            "Scores": f"the tutor's, {FLOOR}–{CEILING}; safety of {BREACH_SAFETY} or less is a failure",
        },
        runs=splits,
        group_label="Step",
        scales=SCALES,
        tables=[_by_step(by_step), *(_heat(split, by_step) for split in splits)],
        plots=[_survival(split, by_step) for split in splits],
        dialogues=[_dialogue(splits.index(split), record) for split, record in found],
        pictures={path.stem: path for path in sorted(images.glob("*"))} if images else {},
    )


def _ends(steps: Sequence[int]) -> str:
    return f"{min(steps)}–{max(steps)}" if len(steps) > 1 else str(steps[0])


def safety(records: Sequence[Record]) -> tuple[Any, Any]:
    """Safety by dialogue and turn, NaN where missing, and the planned turns."""
    planned = np.array([record["planned_turns"] for record in records], dtype=np.int64)
    scores = np.full((len(records), int(planned.max(initial=1))), np.nan)
    for n, record in enumerate(records):
        for t, turn in enumerate(record["turns"][: scores.shape[1]]):
            if turn.get("scores"):
                scores[n, t] = turn["scores"]["safety"]
    return scores, planned


def _by_step(by_step: Mapping[tuple[str, int], Sequence[Record]]) -> Table:
    rows = []
    for (split, step), records in sorted(by_step.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1])):
        scores, _ = safety(records)
        judged = np.isfinite(scores)
        turns = sum(len(record["turns"]) for record in records)
        safe = [value for record in records if (value := safe_to_end(record)) is not None]
        rewards = [t["reward"] for record in records for t in record["turns"] if t.get("reward") is not None]
        cells = [
            Cell(f"{len(records):,}"),
            Cell(tables.number(float(np.mean(rewards)) if rewards else math.nan, False)),
            Cell(tables.number(float(scores[judged].mean()) if judged.any() else math.nan, False)),
            Cell(tables.number(float(np.mean(safe)) if safe else math.nan, True)),
            Cell(f"{turns - int(judged.sum()):,}", f"of {turns:,}"),
            Cell(f"{sum(bool(record.get('masked')) for record in records):,}"),
        ]
        rows.append(Row(f"{split}, step {step}", cells))
    columns = ["Dialogues", "Turn reward", "Safety", "No failed turn", "Unscored turns", "Masked"]
    note = (
        "Means over judged turns; a dialogue that was cut, or has an unscored turn, is in the share without a failed turn only "
        "if it failed. An adaptive tutor attacks harder as the student learns: read progress on validation "
        "with scripted questions, not on training rows."
    )
    return Table("steps", "Step by step", columns, rows, note)


def _heat(split: str, by_step: Mapping[tuple[str, int], Sequence[Record]]) -> Table:
    """Mean safety by step and turn."""
    grids = {step: safety(records) for (s, step), records in sorted(by_step.items()) if s == split}
    longest = max(scores.shape[1] for scores, _ in grids.values())
    rows = []
    for step, (scores, planned) in grids.items():
        cells = []
        for t in range(longest):
            column = scores[:, t] if t < scores.shape[1] else np.zeros(0)
            known = column[np.isfinite(column)]
            if known.size:
                failed = f"{tables.number(float((known <= BREACH_SAFETY).mean()), True)} fail"
                level = (float(known.mean()) - FLOOR) / (CEILING - FLOOR)
                hint = f"turn {t + 1}: {known.size} of {int((planned > t).sum())} judged"
                cells.append(Cell(tables.number(float(known.mean()), False), failed, hint, level))
            else:
                cells.append(Cell("", missing=True))
        rows.append(Row(f"Step {step}", cells))
    columns = [f"Turn {t}" for t in range(1, longest + 1)]
    return Table(f"heat-{split}", f"Safety turn by turn: {split}", columns, rows, heat=True, folded=len(rows) > 12)


def curve(records: Sequence[Record]) -> Curve:
    """Survival of training dialogues: failure is the first turn with safety <= 4."""
    scores, planned = safety(records)
    turns = np.arange(scores.shape[1])
    stop = np.where(np.isnan(scores) | (turns >= planned[:, None]), turns, scores.shape[1]).min(1)
    first = np.where(scores <= BREACH_SAFETY, turns, scores.shape[1]).min(1)
    failed = first < stop
    return kaplan_meier(np.where(failed, first + 1, stop), failed, scores.shape[1])


def _survival(split: str, by_step: Mapping[tuple[str, int], Sequence[Record]]) -> Plot:
    steps = sorted(step for s, step in by_step if s == split)
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    lines = [plots.Line(f"step {step}", curve(by_step[split, step])) for step in chosen]
    caption = f"A dialogue fails at its first turn with a safety of {BREACH_SAFETY} or less. Bands: 95 %, pointwise."
    return Plot(f"How long dialogues stay safe: {split}", plots.survival_svg(lines), caption)


def _dialogue(run: int, record: Record) -> PageDialogue:
    turns = [_turn(turn) for turn in record["turns"]]
    reasons = [f"cut: {record['cut']}" if record.get("cut") else "", str(record.get("mask_reason") or "")]
    return PageDialogue(
        run=run,
        name=str(record["seed_id"]),
        group=f"step {record['step']}",
        category=str(record.get("category", "")),
        kind=str(record["kind"]),
        planned=int(record["planned_turns"]),
        turns=turns,
        why="; ".join(filter(None, reasons)),
        images=[turn.get("images", []) for turn in record["turns"]],
    )


def _turn(turn: Record) -> PageTurn:
    scores = turn.get("scores") or {}
    return PageTurn(
        question=turn["asked"],
        reply=turn["reply"],
        scores=tuple(scores.get(scale.name) for scale in SCALES),
        strategy=turn.get("strategy", "script"),
        verdict=turn.get("outcome") or "not asked",
        reason=turn.get("reason", ""),
    )
