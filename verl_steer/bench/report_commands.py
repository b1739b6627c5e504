"""The commands `verl-steer bench report | compare` and `verl-steer records report`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from verl_steer.bench.console import guarded


def add_report_commands(actions: Any) -> None:
    """Adds `report` and `compare` to the actions of `verl-steer bench`."""
    report = actions.add_parser(
        "report", help="figures, survival and every dialogue of one or several runs, as one page"
    )
    report.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders of `bench run`, judged; first: the model"
    )
    report.add_argument("--judge", help="whose verdicts count, where several have judged")
    report.add_argument("--out", type=Path, help="folder to write (default: DIR/report of the first run)")
    report.add_argument("--redact", action="store_true", help="no text and no picture of a dialogue in the page")
    report.set_defaults(run=guarded(_report))

    compare = actions.add_parser("compare", help="is the second run better than the first? paired, over one bench")
    compare.add_argument("first", type=Path, metavar="A")
    compare.add_argument("second", type=Path, metavar="B")
    compare.add_argument(
        "--seed", nargs=2, type=Path, action="append", default=[], metavar=("A", "B"),
        help="the runs of another training seed of both methods; with it, seeds are the unit",
    )  # fmt: skip
    compare.add_argument("--judge", help="whose verdicts count, where several have judged")
    compare.add_argument("--json", action="store_true", help="print the differences as JSON")
    compare.set_defaults(run=guarded(_compare))


def add_records_report(actions: Any) -> None:
    """Adds `report` to the actions of `verl-steer records`."""
    report = actions.add_parser("report", help="every dialogue of a training run, step by step, as one page")
    report.add_argument("directory", type=Path)
    report.add_argument("--out", type=Path, help="folder to write (default: DIRECTORY/report)")
    report.add_argument("--images", type=Path, help="folder of pictures named by their SHA-256; records hold none")
    report.add_argument("--redact", action="store_true", help="no text of a dialogue in the page")
    report.set_defaults(run=guarded(_records))


def _report(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from verl_steer.bench.report import tables
    from verl_steer.bench.report.bench_report import evaluate_all, write_report
    from verl_steer.bench.report.terminal import print_table

    error_console = Console(stderr=True)
    with error_console.status("reading verdicts and working out figures"):
        results = evaluate_all(arguments.folders, arguments.judge)
    with error_console.status("drawing the page"):
        paths = write_report(results, arguments.out or arguments.folders[0] / "report", arguments.redact)
    console = Console()
    print_table(tables.headline(results), console, sideways=True)
    print_table(tables.account(results), console, sideways=True)
    for path in paths:
        sys.stdout.write(f"{path}\n")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console

    from verl_steer.bench.compare import compare, over_seeds
    from verl_steer.bench.report import tables
    from verl_steer.bench.report.bench_report import comparable
    from verl_steer.bench.report.terminal import print_table
    from verl_steer.bench.results import clean

    pairs = [comparable(a, b, arguments.judge) for a, b in [(arguments.first, arguments.second), *arguments.seed]]
    found = [compare(a.verdicts, b.verdicts) for a, b in pairs]
    seeds = len(found) > 1
    result = over_seeds(found) if seeds else found[0]
    if arguments.json:
        sys.stdout.write(json.dumps(clean([asdict(d) for d in result]), indent=1, allow_nan=False) + "\n")
        return 0
    first, second = (side.run.name for side in pairs[0])
    unit = f"{len(found)} training seeds" if seeds else "clusters of dialogues"
    table = tables.differences(first, second, result, unit)
    console = Console()
    print_table(table, console)
    console.print(table.note, style="dim")
    return 0


def _records(arguments: argparse.Namespace) -> int:
    from verl_steer.bench.report.records_report import write_records_report

    out = arguments.out or arguments.directory / "report"
    sys.stdout.write(f"{write_records_report(arguments.directory, out, arguments.redact, arguments.images)}\n")
    return 0
