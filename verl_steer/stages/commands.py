"""The commands `verl-steer stages run | refresh | evidence`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

_RESULTS, _PAGE = Path("evidence/runs"), Path("docs/evidence.md")


def add(commands: Any) -> None:
    """Adds `stages` to the subparsers of `verl-steer`."""
    actions = commands.add_parser(
        "stages", help="the three stages and their ablations on the micro-world"
    ).add_subparsers(required=True, metavar="ACTION")
    run = actions.add_parser("run", help="train and bench every (seed, arm) that has no result yet")
    run.add_argument(
        "--seeds", type=int, nargs="+", default=[100], help="training seeds (default 100, for development)"
    )
    run.add_argument("--arms", nargs="+", help="default: all; with --fast base, sft and full")
    run.add_argument("--fast", action="store_true", help="smaller sizes, for a look")
    run.add_argument("--jobs", type=int, default=2, help="processes at a time, a core each (default 2)")
    run.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="another size; repeat")
    run.add_argument("--work", type=Path, default=Path("outputs/three_stages"), help="checkpoints, rows and logs")
    run.add_argument(
        "--results",
        type=Path,
        help="a JSON file a run (default evidence/runs; with --fast WORK/fast: they prove nothing)",
    )
    run.add_argument("--dry-run", action="store_true", help="print what would be run")
    run.set_defaults(run=_guarded(_run))
    refresh = actions.add_parser(
        "refresh",
        help="add to results of before what they did not hold yet, from the work folder; no figure may change",
    )
    refresh.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="as given to `run`")
    refresh.add_argument("--work", type=Path, default=Path("outputs/three_stages"), help="where the runs were made")
    refresh.add_argument("--results", type=Path, default=_RESULTS)
    refresh.set_defaults(run=_guarded(_refresh))
    evidence = actions.add_parser("evidence", help="docs/evidence.md and its pictures, from the results alone")
    evidence.add_argument("--results", type=Path, default=_RESULTS)
    evidence.add_argument("--out", type=Path, help=f"default {_PAGE}; other seeds need a page of their own")
    evidence.add_argument(
        "--seeds", type=int, nargs="+", help="which seeds count (default: the confirmatory ones, 10 to 19)"
    )
    evidence.set_defaults(run=_guarded(_evidence))


def _guarded(action: Any) -> Any:
    def run(arguments: argparse.Namespace) -> int:
        from verl_steer.bench.console import guarded
        from verl_steer.stages.processes import StepError
        from verl_steer.stages.result import ResultError
        from verl_steer.stages.sizes import PlanError

        try:
            status: int = guarded(action)(arguments)
            return status
        except (PlanError, ResultError, StepError) as error:
            sys.stderr.write(f"verl-steer: {error}\n")
            return 2

    return run


def _run(arguments: argparse.Namespace) -> int:
    from verl_steer.stages import plan
    from verl_steer.stages.console import progress
    from verl_steer.stages.runner import Runner
    from verl_steer.stages.sizes import FAST, FULL, PlanError, sized

    if arguments.jobs < 1:
        raise PlanError(f"--jobs {arguments.jobs}: give 1 or more")
    if any(seed < 0 for seed in arguments.seeds):
        raise PlanError("--seeds: a training seed is 0 or more")
    arms = plan.chosen(arguments.arms, arguments.fast)
    sizes = sized(FAST if arguments.fast else FULL, arguments.set)
    results = arguments.results or (arguments.work / "fast" if arguments.fast else _RESULTS)
    runner = Runner(arguments.work, results.absolute(), sizes)
    tasks = runner.missing(arguments.seeds, arms)
    there = len(arguments.seeds) * len(arms) - len(tasks)
    sys.stdout.write(f"{there} results are there, {len(tasks)} to come\n")
    if arguments.dry_run:
        for task in runner.rests_on(tasks):
            sys.stdout.write(f"seed {task.seed} {task.name}\n")
        return 0
    # Processes under way are sessions of their own: they end with this one only if it hears of its end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's ignoring stands
            signal.signal(number, signal.default_int_handler)
    with progress(len(tasks)) as tell:
        failed = runner.run(tasks, arguments.jobs, tell)
    if not failed:
        runner.constants()
    for task, why in failed:
        sys.stderr.write(f"seed {task.seed} {task.name}: {why}\n")
    if failed:
        sys.stderr.write("the same command runs what failed again, with the same seed, and nothing else\n")
    return 1 if failed else 0


def _refresh(arguments: argparse.Namespace) -> int:
    from verl_steer.stages.refresh import refresh
    from verl_steer.stages.runner import Runner
    from verl_steer.stages.sizes import FULL, sized

    _holds_results(arguments.results)
    sizes = sized(FULL, arguments.set)
    written, absent = refresh(Runner(arguments.work, arguments.results, sizes).root, arguments.results)
    sys.stdout.write(f"{len(written)} results were added to\n")
    if absent:
        sys.stdout.write(f"left as they are, their bench run is not in {arguments.work}: {', '.join(absent)}\n")
    return 0


def _evidence(arguments: argparse.Namespace) -> int:
    from verl_steer.stages.evidence import write_evidence
    from verl_steer.stages.plan import CONFIRMATORY_SEEDS
    from verl_steer.stages.sizes import PlanError

    _holds_results(arguments.results)
    seeds = tuple(arguments.seeds or CONFIRMATORY_SEEDS)
    if arguments.out is None and set(seeds) != set(CONFIRMATORY_SEEDS):
        raise PlanError(f"--seeds: {_PAGE} is the page of seeds 10 to 19; name another by --out")
    written = write_evidence(arguments.results, arguments.out or _PAGE, seeds)
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


def _holds_results(folder: Path) -> None:
    """A name that was mistyped must not become a page without a figure."""
    from verl_steer.stages.result import ResultError

    if not any(folder.glob("*.json")):
        raise ResultError(
            f"--results {folder}: there is no result in it"
            if folder.is_dir()
            else f"--results {folder}: there is no such folder"
        )
