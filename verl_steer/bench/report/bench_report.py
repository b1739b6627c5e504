"""The report of one or several runs of STEER-Bench: page, CSV and JSON in one folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from verl_steer.bench.agreement import agreement
from verl_steer.bench.compare import compare
from verl_steer.bench.files import Judged, Played, Run, judges_of, read_judges, read_verdicts
from verl_steer.bench.judging import standing
from verl_steer.bench.lines import BenchError, whole
from verl_steer.bench.pictures import IMAGES
from verl_steer.bench.report import plots, tables
from verl_steer.bench.report.model import Page, PageDialogue, PageTurn, Plot, Scale
from verl_steer.bench.report.page import write_page
from verl_steer.bench.results import Result, as_json, evaluate, rows
from verl_steer.bench.survival import UNSAFE_BELOW
from verl_steer.data.wording import cell

SCALES = (Scale("harmlessness", "Harmlessness", -3, 3, UNSAFE_BELOW), Scale("helpfulness", "Helpfulness", 0, 3))


def evaluate_all(folders: Sequence[Path], judge: str | None) -> list[Result]:
    """All runs by one judge; names that several runs share get their folder's.

    Raises:
        BenchError: A folder cannot be read, or the runs are of different benches.
    """
    results = [evaluate(folder, judge) for folder in folders]
    for result in results[1:]:
        _same_bench(results[0], result)
    return [_renamed(result, _name_among(result, results)) for result in results]


def _name_among(result: Result, results: Sequence[Result]) -> str:
    """The run's name, with its folder's where others have it too, and with the whole path where that is not enough."""
    places = [r.folder.name for r in results if r.run.name == result.run.name]
    if len(places) == 1:
        return result.run.name
    return f"{result.run.name} ({result.folder.name if len(set(places)) == len(places) else result.folder})"


def comparable(first: Path, second: Path, judge: str | None) -> tuple[Result, Result]:
    """Two runs whose figures may be subtracted.

    Raises:
        BenchError: They are of different benches, modes or attackers, or were judged by different judges or prompts.
    """
    a, b = evaluate_all([first, second], judge)
    if why := _unlike(a, b):
        raise BenchError(why)
    return a, b


def _unlike(a: Result, b: Result) -> str:
    """Why the figures of two runs of one bench may not be subtracted, "" if they may."""
    if _asking(a.run) != _asking(b.run):
        return (
            f"{a.folder} is {a.run.mode} and {b.folder} {b.run.mode}, or another attacker or seed rewrote: their "
            "questions differ, so rows do not pair"
        )
    who = [read_judges(r.folder).get(r.judge) for r in (a, b)]
    said = [(w.model, w.prompt_sha256) if w else ("unknown", "") for w in who]
    if a.judge != b.judge or said[0] != said[1]:
        return (
            f"{a.folder} was judged by {a.judge} ({said[0][0]}) and {b.folder} by {b.judge} ({said[1][0]}), or with another prompt: "
            "judge both alike, and name the judge with --judge"
        )
    return ""


def _asking(run: Run) -> tuple[object, ...]:
    """What the questions depend on, besides the bench and the replies."""
    if run.attacker is None:
        return (run.mode,)
    return run.mode, run.seed, {key: value for key, value in run.attacker.items() if key != "base_urls"}


def _same_bench(first: Result, other: Result) -> None:
    if other.run.bench.sha256 != first.run.bench.sha256:
        raise BenchError(
            f"{other.folder} is a run of {other.run.bench.file} and {first.folder} one of {first.run.bench.file}, or that file "
            "has changed in between; their rows are not the same"
        )


def _renamed(result: Result, name: str) -> Result:
    return Result(**{**vars(result), "run": result.run.model_copy(update={"name": name})})


def write_report(results: Sequence[Result], out: Path, redact: bool = False) -> list[Path]:
    """Writes index.html, results.json, figures.csv and survival.svg into `out`; each whole or not at all.

    Args:
        results: From `evaluate_all`; the first model is the one that detailed tables speak of.
        out: Folder, made if missing.
        redact: No text and no picture of a dialogue.
    """
    page = build_page(results)
    whole(
        out / "results.json", (json.dumps([as_json(r) for r in results], indent=1, ensure_ascii=False) + "\n").encode()
    )
    whole(out / "figures.csv", _csv(results))
    whole(out / "survival.svg", page.plots[0].svg.encode())
    paths = [out / name for name in ("results.json", "figures.csv", "survival.svg")]
    return [write_page(page, out, redact), *paths]


def _csv(results: Sequence[Result]) -> bytes:
    buffer = io.StringIO()
    lines = [{name: cell(value) for name, value in row.items()} for result in results for row in rows(result)]
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue().encode("utf-8", "replace")


def build_page(results: Sequence[Result]) -> Page:
    """Everything that the page shows; dialogues of constant policies, which say nothing, are left to their files."""
    models = [r for r in results if tables.tone(r) != "policy"] or list(results[:1])
    runs = [r.run.name for r in models]
    dialogues = [_dialogue(n, d, r) for n, r in enumerate(models) for d in r.dialogues]
    pictures = {p.stem: p for r in models for p in sorted((r.folder / IMAGES).glob("*"))}
    return Page(
        title="STEER-Bench: " + " · ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else ""),
        facts=_facts(models[0]),
        runs=runs,
        group_label="Subset",
        scales=SCALES,
        tables=_tables(results, models),
        plots=_plots(results, models[0]),
        dialogues=dialogues,
        pictures=pictures,
    )


def _tables(results: Sequence[Result], models: Sequence[Result]) -> list[tables.Table]:
    found = [tables.headline(results)]
    for other in models[1:]:
        if not _unlike(models[0], other):
            differences = compare(models[0].verdicts, other.verdicts)
            found.append(tables.differences(models[0].run.name, other.run.name, differences))
    found += [table for model in models if (table := _agreement(model))]
    found += [tables.heat_map(model) for model in models]
    found.append(tables.beside_paper(results))
    for by, title in (("category", "By category"), ("kind", "By kind of script"), ("length", "By planned turns")):
        found.append(tables.groups(models, by, title))
    found += [tables.survival(model) for model in models]
    found.append(tables.account(results))
    # A name is an anchor of the page.
    return [table if n == 0 else _numbered(table, n) for n, table in enumerate(found)]


def _agreement(result: Result) -> tables.Table | None:
    """The other judges of a run, if there are any."""
    others = [name for name in judges_of(result.folder) if name != result.judge]
    if not others:
        return None
    reports = {
        name: agreement(result.lines, standing(result.dialogues, read_verdicts(result.folder, name))) for name in others
    }
    return tables.agreement(result.run.name, result.judge, reports)


def _numbered(table: tables.Table, n: int) -> tables.Table:
    return tables.Table(**{**vars(table), "name": f"{table.name}-{n}"})


def _plots(results: Sequence[Result], first: Result) -> list[Plot]:
    lines = [
        plots.Line(r.run.name, r.survival.plain, r.survival.worst, r.survival.best, dashed=tables.tone(r) == "policy")
        for r in results
    ]
    kinds = [plots.Line(label.replace("_", " "), curve) for label, curve in first.survival.kinds.items()]
    kinds.append(plots.Line("standardised by length and kind", first.survival.standardised, dashed=True))
    safe = first.survival.safe_turns
    return [
        Plot(
            "How long dialogues stay safe",
            plots.survival_svg(lines),
            f"A dialogue fails at its first turn with harmlessness below {UNSAFE_BELOW:.0f}. Bands: 95 %, pointwise. Dots: every missing "
            "verdict a failure, or a safe turn. Shaded: fewer than half are still safe.",
        ),
        Plot(
            f"By kind of script: {first.run.name}",
            plots.survival_svg(kinds),
            f"Safe turns of the first eight: {tables.number(safe.value, False)} "
            f"({tables.span(safe.low, safe.high, False)}). Dashed: with the bench's own mixture of lengths and kinds.",
        ),
    ]


def _facts(result: Result) -> dict[str, str]:
    run = result.run
    system = {None: "each row's own", "": "none"}.get(run.system, "one for all rows")
    judge = read_judges(result.folder).get(result.judge)
    canaries = judge.canaries if judge else None
    facts = {
        "Bench": f"{Path(run.bench.file).name}, {run.bench.rows:,} rows",
        "Judge": f"{result.judge} ({result.judge_model})" if result.judge_model else result.judge,
        "Canaries of the judge": "not run" if canaries is None else "passed" if canaries.get("passes") else "failed",
        "Mode": run.mode,
        "Decoding": ", ".join(f"{key} {value}" for key, value in run.decoding.items()),
        "System prompt": system,
        "Pictures": run.image_preset,
        "Seed": str(run.seed),
    }
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return facts | ({"Versions": versions} if versions else {})


def _dialogue(n: int, d: Played, result: Result) -> PageDialogue:
    return PageDialogue(
        run=n,
        name=d.id,
        group=d.subset,
        category=d.category,
        kind=d.kind.value if d.kind else "",
        planned=d.planned_turns,
        turns=[_turn(d, t, result.lines.get((d.id, t + 1))) for t in range(len(d.turns))],
        why=f"{d.status}: {d.why}" if d.why else "",
        pair=d.pair or "",
        system=d.system,
        images=d.images,
    )


def _turn(d: Played, t: int, verdict: Judged | None) -> PageTurn:
    played = d.turns[t]
    scores = (verdict.harmlessness, verdict.helpfulness) if verdict else (None, None)
    outcome = verdict.outcome.value if verdict else ("not asked" if played.answered else "no reply")
    reason = verdict.reason if verdict else ""
    return PageTurn(played.question, played.reply, scores, played.strategy, played.outcome.value, outcome, reason)
