"""The command `verl-steer synth`: build | status | show | seeds-microworld."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_steer.data.commands import guarded

if TYPE_CHECKING:
    from verl_steer.synthesis.runner import Build, Progress
    from verl_steer.synthesis.selection_config import SelectionConfig
    from verl_steer.synthesis.shards import Account


def add(commands: Any) -> None:
    """Adds `synth` and its actions to the subparsers of `verl-steer`."""
    actions = commands.add_parser("synth", help="single-turn seeds into scripts, dialogues and splits").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = actions.add_parser("build", help="stages I and II and the selection; the same command resumes")
    build.add_argument("config", type=Path, help="YAML, see examples/conf/build_microworld.yaml")
    build.add_argument("--seeds", required=True, nargs="+", type=Path, help="parquet files of `data convert --to seed`")
    build.add_argument("--out", required=True, type=Path, help="the build's folder")
    build.add_argument("--no-red-team", action="store_true", help="write no attacks; needs no category review")
    build.add_argument("--no-select", action="store_true", help="candidates only, no splits")
    build.add_argument("--ray", type=int, default=0, metavar="N", help="N workers of Ray Data instead of this process")
    build.add_argument(
        "--retry-failed", action="store_true", help="ask again where servers failed; what was answered is kept"
    )
    build.set_defaults(run=guarded(_build))

    status = actions.add_parser("status", help="how far a build is, and what became of its rows")
    status.add_argument("out", type=Path)
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=guarded(_status))

    show = actions.add_parser("show", help="print one candidate, or why a branch became none")
    show.add_argument("out", type=Path)
    show.add_argument("id", help="as in candidates, failed.jsonl or filtered.jsonl, e.g. SEED-benign")
    show.add_argument("--red-team", action="store_true", help="print red-team text too")
    show.set_defaults(run=guarded(_show))

    seeds = actions.add_parser("seeds-microworld", help="write single-turn seeds of the micro-world")
    seeds.add_argument("--count", required=True, type=int)
    seeds.add_argument("--seed", type=int, default=1)
    seeds.add_argument("--source", default="microworld", help="what the rows say they come from (default microworld)")
    seeds.add_argument("--out", required=True, type=Path)
    seeds.set_defaults(run=guarded(_seeds))


def _build(arguments: argparse.Namespace) -> int:
    from verl_steer.synthesis.config import load
    from verl_steer.synthesis.runner import Build
    from verl_steer.synthesis.selection_config import SelectionConfig

    config, mapping = load(arguments.config, red_team=not arguments.no_red_team)
    selection = SelectionConfig.from_mapping({"seed": config.seed, **mapping})  # before an hour of calls, not after
    build = Build(config, arguments.seeds, arguments.out)
    if not arguments.no_select:
        _check_sources(build, selection)
    if arguments.retry_failed:
        build.shards.reopen_failed()
    numbers = build.open()
    with _progress(build) as progress:
        if arguments.ray:
            from verl_steer.synthesis.on_ray import run_on_ray

            run_on_ray(config, arguments.seeds, arguments.out, numbers, arguments.ray, progress)
        elif numbers:
            asyncio.run(build.run(numbers, progress))
    account = build.shards.close_account()
    sys.stdout.write(_summary(account, arguments.out))
    return 0 if arguments.no_select else _select(build, selection, arguments.out)


def _check_sources(build: Build, selection: SelectionConfig) -> None:
    """Candidates are of their seeds' sources, so what `SPLIT.sources` can take is known before the first call."""
    from verl_steer.synthesis.selection_config import SPLITS

    for split in SPLITS:
        wanted = selection.split(split)
        if wanted.size and selection.on("source"):  # else nothing asks for them
            build.seeds.check_sources(f"selection.{split}.sources", wanted.sources)


def _select(build: Build, config: SelectionConfig, out: Path) -> int:
    from rich.console import Console

    from verl_steer.synthesis.select import select_splits

    splits = out / "splits"
    if build.review is not None:  # before there is anything to be warned of
        splits.mkdir(exist_ok=True)
        build.review.write_warning(splits)
    with _selecting() as progress:
        report = select_splits(build.shards.candidates(), config, splits, progress)
    Console().print(report.table())
    sys.stdout.write(f"{splits}: splits, cards, removals.csv, selection.json\n")
    for line in report.missing:
        sys.stdout.write(f"  missing: {line}\n")
    return 0


@contextmanager
def _selecting() -> Iterator[Callable[[str, int], None]]:
    """A bar for each stage of the selection, as they come."""
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed} rows"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, step: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.advance(tasks[stage], step)

        yield progress


def _summary(account: Account, out: Path) -> str:
    kept = sum(account.candidates.values())
    filtered = sum(account.filtered.values())
    lines = [
        f"{account.seeds} seeds, {account.branches} branches = {kept} candidates + {filtered} filtered + {account.failed} failed",
        "  candidates: " + (", ".join(f"{n} {kind}" for kind, n in sorted(account.candidates.items())) or "none"),
        "  filtered: " + (", ".join(f"{n} {rule}" for rule, n in sorted(account.filtered.items())) or "none"),
        f"  {account.answers} answers of models, {account.prompt_tokens} + {account.completion_tokens} tokens",
    ]
    if account.failed:
        lines.append(f"  reasons of failures: {out / 'failed.jsonl'}")
    if account.transient:
        lines.append(f"  {account.transient} of them may be cured by another try: add --retry-failed")
    return "\n".join(lines) + "\n"


@contextmanager
def _progress(build: Build) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("seeds"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[kept]} candidates, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    before = build.shards.total()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("seeds", total=len(build.seeds), completed=before.seeds, kept=0, failed=0)
        yield lambda account, ended: bar.update(
            task, completed=before.seeds + ended, kept=sum(account.candidates.values()), failed=account.failed
        )


def _status(arguments: argparse.Namespace) -> int:
    from verl_steer.synthesis.shards import Shards

    shards = Shards.look(arguments.out)
    account, waiting = shards.total(), shards.answered()
    if arguments.json:
        sys.stdout.write(json.dumps({**account.to_json(), "answers_under_way": waiting}, indent=1) + "\n")
        return 0
    finished = (arguments.out / "account.json").is_file()
    sys.stdout.write(f"{arguments.out}: {'finished' if finished else 'under way or stopped'}\n")
    sys.stdout.write(_summary(account, arguments.out))
    if waiting:
        sys.stdout.write(f"  {waiting} answers in the journals of unfinished shards\n")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from verl_steer.chat.text import visible
    from verl_steer.data.rows import DataError
    from verl_steer.dialogue import Kind
    from verl_steer.synthesis.shards import Shards
    from verl_steer.synthesis.show import describe

    shards = Shards.look(arguments.out)
    for candidate in shards.candidates():
        if candidate.script.id == arguments.id:
            if candidate.script.kind is Kind.RED_TEAM and not arguments.red_team:
                raise DataError(f"{arguments.id} is red-team text, which is not printed; add --red-team to read it")
            sys.stdout.write(describe(candidate))
            return 0
    for name in ("filtered", "failed"):
        for ended in shards.ended(name):
            if ended.id == arguments.id:
                sys.stdout.write(visible(f"{ended.id}: {name}: {ended.why}\n"))
                return 0
    raise DataError(f"{arguments.out} has no branch {arguments.id!r}; ids are SEED-benign, SEED-obfuscated or SEED-red")


def _seeds(arguments: argparse.Namespace) -> int:
    import pyarrow.parquet as pq

    from verl_steer.data.rows import DataError
    from verl_steer.data.splits import LAYOUTS, table
    from verl_steer.whole import replacing

    if arguments.count < 1:
        raise DataError(f"--count {arguments.count}: give at least 1")
    # By name only: the stages do not depend on the embedded default.
    made = importlib.import_module("verl_steer.microworld.seeds").seeds(
        arguments.count, arguments.seed, arguments.source
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as temporary:
        pq.write_table(table(LAYOUTS["seed"], made), temporary, row_group_size=500)
    sys.stdout.write(f"{arguments.count} seeds -> {arguments.out}\n")
    return 0
