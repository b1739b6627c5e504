"""All figures of one run in one object, and as plain data for JSON and CSV."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_steer.bench import metrics
from verl_steer.bench.files import Judged, Played, Run, read_judges, read_run
from verl_steer.bench.intervals import Estimate
from verl_steer.bench.judged import Account, Verdicts, account_for, choose_judge, load
from verl_steer.bench.metrics import Figure, TurnRow
from verl_steer.bench.survival import Curve, bounds, kaplan_meier, observe, safe_turns, standardised

Figures = dict[str, Figure]


@dataclass(frozen=True)
class Survival:
    """The curves of a run.

    Attributes:
        plain: Over all dialogues.
        standardised: Over length and kind, with the bench's weights.
        worst: Every missing verdict a failure.
        best: Every missing verdict a safe turn.
        kinds: By kind.
        lengths: By planned length.
        safe_turns: Restricted mean over the first eight turns.
    """

    plain: Curve
    standardised: Curve
    worst: Curve
    best: Curve
    kinds: dict[str, Curve]
    lengths: dict[str, Curve]
    safe_turns: Estimate


@dataclass(frozen=True)
class Result:
    """One run by one judge.

    Attributes:
        folder: Of the run.
        run: What was run.
        judge: Name of the judge.
        judge_model: What it says about itself, "" if `judges.json` lacks it.
        account: Where every row and turn is.
        dialogues: As played.
        lines: The judge's verdicts by (dialogue, turn).
        verdicts: The same as arrays.
        overall: Every measure over all dialogues.
        average: Every measure as the unweighted average over subsets.
        groups: subset, category, kind and length -> label -> measure.
        turns: Every turn position.
        heat: Subset -> every turn position.
        survival: The curves.
    """

    folder: Path
    run: Run
    judge: str
    judge_model: str
    account: Account
    dialogues: list[Played]
    lines: Mapping[tuple[str, int], Judged]
    verdicts: Verdicts
    overall: Figures
    average: Figures
    groups: dict[str, dict[str, Figures]]
    turns: list[TurnRow]
    heat: dict[str, list[TurnRow]]
    survival: Survival

    @property
    def single_turn(self) -> bool:
        """Whether every dialogue is planned for one turn."""
        return bool((self.verdicts.planned == 1).all())


def evaluate(folder: Path, judge: str | None = None) -> Result:
    """Reads a run folder and works everything out.

    Raises:
        BenchError: A file is missing or damaged, nobody has judged, or the judge must be named.
    """
    run, judge = read_run(folder), choose_judge(folder, judge)
    dialogues, lines, verdicts = load(folder, judge)
    known = read_judges(folder).get(judge)
    groups = {
        "subset": metrics.by_group(verdicts, verdicts.subset),
        "category": metrics.by_group(verdicts, verdicts.category),
        "kind": metrics.by_group(verdicts, verdicts.kind),
        "length": metrics.by_group(verdicts, verdicts.planned),
    }
    return Result(
        folder=folder,
        run=run,
        judge=judge,
        judge_model=known.model if known else "",
        account=account_for(dialogues, lines),
        dialogues=dialogues,
        lines=lines,
        verdicts=verdicts,
        overall=metrics.figures(verdicts),
        average=metrics.averages(groups["subset"]),
        groups=groups,
        turns=metrics.by_turn(verdicts),
        heat={name: metrics.by_turn(verdicts.where(verdicts.subset == name)) for name in groups["subset"]},
        survival=survive(verdicts),
    )


def survive(verdicts: Verdicts) -> Survival:
    """Every curve of a run."""
    turns = int(verdicts.planned.max(initial=1))
    duration, failed = observe(verdicts.harmlessness, verdicts.planned)
    worst, best = bounds(verdicts.harmlessness, verdicts.planned, turns)
    strata = np.char.add(np.char.add(verdicts.kind, ":"), verdicts.planned.astype(np.str_))

    def split(labels: Any, length: bool = False) -> dict[str, Curve]:
        return {
            str(label): kaplan_meier(
                duration[labels == label], failed[labels == label], int(label) if length else turns
            )
            for label in np.unique(labels)
        }

    return Survival(
        kaplan_meier(duration, failed, turns),
        standardised(duration, failed, strata, verdicts.planned, turns),
        worst,
        best,
        split(verdicts.kind),
        split(verdicts.planned, length=True),
        safe_turns(duration, failed, verdicts.cluster),
    )


def as_json(result: Result) -> dict[str, Any]:
    """Plain data to give away: no text of a dialogue, no prompt, no server's address; what is unknown is null."""
    plain = {
        "run": _without_words(result.run),
        "judge": {"name": result.judge, "model": result.judge_model},
        "account": asdict(result.account),
        "overall": _figures(result.overall),
        "average_over_subsets": _figures(result.average),
        "by": {by: {label: _figures(f) for label, f in labels.items()} for by, labels in result.groups.items()},
        "by_turn": [asdict(row) for row in result.turns],
        "by_subset_and_turn": {name: [asdict(row) for row in rows] for name, rows in result.heat.items()},
        "survival": _survival(result.survival),
    }
    return dict(clean(plain))


def _without_words(run: Run) -> dict[str, Any]:
    """What was run; texts as their length and digest, which tell two of them apart. The folder's run.json has the words."""
    plain = run.model_dump(mode="json")
    for who in (plain["model"], plain["attacker"] or {}):
        if "base_urls" in who:
            who["base_urls"] = f"[{len(who['base_urls'])} not shown]"
    for where, key in ((plain, "system"), (plain["model"], "reply")):
        if text := where.get(key):
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            where[key] = f"[{len(text):,} characters, SHA-256 {digest}]"
    return plain


def rows(result: Result) -> Iterator[dict[str, Any]]:
    """One row a figure, for CSV."""
    groups: dict[str, dict[str, Figures]] = {"all": {"all": result.overall}, "average": {"subsets": result.average}}
    for by, labels in (groups | result.groups).items():
        for label, found in labels.items():
            for name, figure in found.items():
                yield {"run": result.run.name, "judge": result.judge, "by": by, "group": label, "measure": name} | (
                    clean(_figure(figure))
                )


def _figure(figure: Figure) -> dict[str, Any]:
    e = figure.estimate
    return {
        "value": e.value,
        "low": e.low,
        "high": e.high,
        "judged": e.n,
        "total": figure.total,
        "clusters": e.clusters,
        "low_bound": figure.low_bound,
        "high_bound": figure.high_bound,
    }


def _figures(found: Figures) -> dict[str, Any]:
    return {name: _figure(figure) for name, figure in found.items()}


def curve_rows(curve: Curve) -> list[dict[str, Any]]:
    """A curve turn by turn."""
    names = ("at_risk", "failed", "survival", "low", "high")
    columns = [getattr(curve, name) for name in names]
    return [
        {"turn": t, **dict(zip(names, map(float, row), strict=True))}
        for t, row in enumerate(zip(*columns, strict=True), 1)
    ]


def _survival(found: Survival) -> dict[str, Any]:
    whole: dict[str, Any] = {
        name: curve_rows(getattr(found, name)) for name in ("plain", "standardised", "worst", "best")
    }
    for name in ("kinds", "lengths"):
        whole |= {name: {label: curve_rows(curve) for label, curve in getattr(found, name).items()}}
    return whole | {"safe_turns": asdict(found.safe_turns)}


def clean(value: Any) -> Any:
    """NaN and infinity have no place in JSON: null."""
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
