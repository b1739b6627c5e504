"""One run, one file: everything that evidence is made of, and nothing that a model wrote.

`seedN-ARM.json` for a trained arm, `constant-NAME.json` for a policy that always says the same. A file appears whole; what is
in it is never repeated.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verl_steer.bench import files, metrics, rows
from verl_steer.bench.judged import Verdicts, load
from verl_steer.bench.survival import HORIZON, counts, observe, restricted
from verl_steer.curves import harmful, series, turn_reward
from verl_steer.records import read_records, safe_to_end
from verl_steer.stages.met import Met
from verl_steer.whole import write_text

VERSION: Literal[1] = 1
JUDGE = "microworld-oracle"


class ResultError(ValueError):
    """A result file cannot be read; the message names it."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Risk(_Model):
    """A survival table: entry t−1 speaks of turn t.

    Attributes:
        at_risk: Dialogues safe so far whose turn t is judged.
        failed: Of these, those that fail at it.
    """

    at_risk: list[int]
    failed: list[int]


class Turned(_Model):
    """Right verdicts at the last question, and how many of them an intervention turned."""

    right: int
    flipped: int


class Point(_Model):
    """A point of the learning curve: scripted held-out dialogues, judged by the tutor; None where none was judged."""

    step: int
    harmful: float | None
    benign: float | None
    safe: float | None


class Result(_Model):
    """One arm of one seed, or one constant policy.

    Attributes:
        seed: The training seed; None for a constant policy.
        arm: Name.
        config_hash: Of arm and sizes.
        world_hash: Of the world and its warm-up.
        bench_sha256: Of the bench file.
        sizes: As run.
        versions: Of the packages that matter.
        commands: As run, in order.
        start: The first twelve digits of the SHA-256 of the weights that training began with; "" if not trained.
        student: Of the weights that played the bench; "" for a constant policy.
        seconds: Wall time by step: world, sft, rl, bench; shared steps are counted in every arm that rests on them.
        dialogues: On the bench.
        judged: Turns with a verdict.
        turns: Turns.
        measures: Name -> value over the dialogues that it speaks of; None if unknown.
        by_kind: benign, harmful -> name -> value.
        by_rule: Rule of the taboo -> joint pass of its "benign" and its "harmful" dialogues, "twin_accuracy" of its pairs; empty in
            older results.
        twins: Pairs of twins.
        tutor: probe table of the same dialogues: turn rewards by the oracle (harmful, benign), the tutor's mean, the gap,
            and strict twin accuracy: the last reply right in both, nothing breached or over-refused before it.
        flips: Intervention of `microworld.causal` -> verdicts that it turned; empty for an arm that it was not asked of.
        safe_turns: Restricted mean survival over eight turns, all dialogues.
        survival: all, benign, harmful, and every stratum "kind:length" -> its table.
        curve: Points of the learning curve; empty for what is not trained by stage III.
        met: What the arm met in stage III; None for what is not trained by it, and in older results.
    """

    version: Literal[1] = VERSION
    seed: int | None = None
    arm: str = Field(min_length=1)
    config_hash: str
    world_hash: str
    bench_sha256: str
    sizes: dict[str, Any] = {}
    versions: dict[str, str] = {}
    commands: list[str] = []
    start: str = ""
    student: str = ""
    seconds: dict[str, float] = {}
    dialogues: int
    judged: int
    turns: int
    measures: dict[str, float | None]
    by_kind: dict[str, dict[str, float | None]]
    by_rule: dict[str, dict[str, float | None]] = {}
    twins: int
    tutor: dict[str, float] = {}
    flips: dict[str, Turned] = {}
    safe_turns: float | None
    survival: dict[str, Risk]
    curve: list[Point] = []
    met: Met | None = None

    @property
    def name(self) -> str:
        """The file's stem."""
        return f"constant-{self.arm}" if self.seed is None else f"seed{self.seed}-{self.arm}"


def write(result: Result, folder: Path) -> Path:
    """Writes a result, whole; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    write_text(path, result.model_dump_json(indent=1) + "\n")
    return path


def read(path: Path) -> Result:
    """Reads a result.

    Raises:
        ResultError: It is damaged, or of another version.
    """
    try:
        return Result.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ResultError(f"{path} is no result of this version: {str(error).splitlines()[0]}") from error


def read_all(folder: Path) -> list[Result]:
    """Every result of a folder, by name.

    Raises:
        ResultError: One is damaged, or its name is not what it holds.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        result = read(path)
        if result.name != path.stem:
            raise ResultError(f"{path} holds {result.name}: a result's name says what it is")
        found.append(result)
    return found


def from_bench(folder: Path, bench: Path, judge: str = JUDGE) -> dict[str, Any]:
    """The fields that a judged bench run decides.

    Raises:
        ResultError: A dialogue was not played to its end, or a turn has no verdict: rules miss none, so a step failed.
    """
    run = files.read_run(folder)
    played, _, verdicts = load(folder, judge)
    inside = int(verdicts.inside.sum())
    judged = int((np.isfinite(verdicts.harmlessness) & verdicts.inside).sum())
    scripts = rows.scripts(bench)
    if judged != inside or any(one.status != "done" for one in played) or len(played) != len(scripts):
        raise ResultError(
            f"{folder}: {len(played)} of {len(scripts)} dialogues, {judged} of {inside} turns judged; remove the folder and run again"
        )
    values = {name: _value(verdicts, measure) for name, measure in metrics.MEASURES.items()}
    kinds = {name: verdicts.where(verdicts.benign == (name == "benign")) for name in ("benign", "harmful")}
    duration, failed = observe(verdicts.harmlessness, verdicts.planned)
    at_risk, lost = counts(duration, failed, HORIZON)
    return {
        "bench_sha256": run.bench.sha256,
        "versions": run.versions,
        "dialogues": len(verdicts),
        "turns": inside,
        "judged": judged,
        "measures": values,
        "by_kind": {
            kind: {name: _value(own, measure) for name, measure in metrics.MEASURES.items() if measure.who == "all"}
            for kind, own in kinds.items()
        },
        "by_rule": dict(_rules(verdicts)),
        "twins": metrics.figure(verdicts, metrics.MEASURES["twin_accuracy"]).total,
        "tutor": _gauge(scripts, played),
        "safe_turns": _finite(float(restricted(at_risk, lost))),
        "survival": dict(_tables(verdicts)),
    }


def flips_of(path: Path, student: str) -> dict[str, Turned]:
    """The figures that `verl_steer.microworld.causal --json` wrote.

    Args:
        path: The file.
        student: Hash of the weights it should be about.

    Raises:
        ResultError: It is about others.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("weights", student) != student:
        raise ResultError(
            f"{path} is about other weights ({found['weights']}) than the arm's ({student}); remove it and run again"
        )
    return {name: Turned.model_validate(value) for name, value in found.items() if isinstance(value, dict)}


def curve_of(records: Path) -> list[Point]:
    """The learning curve of a run of stage III, from its validation records."""
    val = list(read_records(records, "val"))
    lines = {
        "harmful": series(filter(harmful, val), turn_reward),
        "benign": series((r for r in val if not harmful(r)), turn_reward),
        "safe": series(filter(harmful, val), safe_to_end),
    }
    steps = sorted({step for line in lines.values() for step in line})
    return [Point(step=step, **{name: line.get(step) for name, line in lines.items()}) for step in steps]


def _value(verdicts: Verdicts, measure: metrics.Measure) -> float | None:
    return _finite(metrics.figure(verdicts, measure).estimate.value)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _tables(verdicts: Verdicts) -> Iterator[tuple[str, Risk]]:
    """At-risk and failure counts of all dialogues, of either kind, and of every stratum."""
    duration, failed = observe(verdicts.harmlessness, verdicts.planned)
    every = np.ones(len(verdicts), dtype=np.bool_)
    groups = {"all": every, "benign": verdicts.benign, "harmful": ~verdicts.benign}
    for kind in ("benign", "harmful"):
        for length in np.unique(verdicts.planned[groups[kind]]):
            groups[f"{kind}:{length}"] = groups[kind] & (verdicts.planned == length)
    for name, own in groups.items():
        turns = int(verdicts.planned[own].max(initial=1))
        at_risk, lost = counts(duration[own], failed[own], turns)
        yield name, Risk(at_risk=at_risk.astype(int).tolist(), failed=lost.astype(int).tolist())


def _rules(verdicts: Verdicts) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Joint pass and twin accuracy by rule; the bench keeps a dialogue's rule as its category, both twins have one."""
    for rule in np.unique(verdicts.category):
        own = verdicts.where(verdicts.category == rule)
        kinds = {name: own.where(own.benign == (name == "benign")) for name in ("benign", "harmful")}
        found = {kind: _value(those, metrics.MEASURES["joint"]) for kind, those in kinds.items()}
        yield str(rule), found | {"twin_accuracy": _value(own, metrics.MEASURES["twin_accuracy"])}


def _gauge(scripts: Mapping[str, Any], played: Sequence[Any]) -> dict[str, float]:
    """What tutor and oracle make of the same dialogues; a rise of the first without the second is reward hacking."""
    said = [[turn.reply for turn in one.turns] for one in played]
    probe = importlib.import_module("verl_steer.microworld.probe")
    row = probe.score([scripts[one.id] for one in played], said)
    return {name: float(getattr(row, name)) for name in ("harmful", "benign", "tutor", "gap", "twin_accuracy")}
