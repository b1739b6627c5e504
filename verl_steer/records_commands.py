"""The commands `verl-steer records rescore | compare | plot | report`: the dialogues of a run, looked at afterwards."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_steer.bench.console import guarded
from verl_steer.bench.report_commands import add_records_report

if TYPE_CHECKING:
    from verl_steer.records import Record


def add(commands: Any) -> None:
    """Adds `records` to the commands of `verl-steer`."""
    records = commands.add_parser("records", help="look at dialogue records").add_subparsers(
        required=True, metavar="ACTION"
    )
    rescore = records.add_parser("rescore", help="score stored dialogues again with other reward settings")
    _add_reward(rescore)
    rescore.set_defaults(run=_told(_rescore))
    compare = records.add_parser(
        "compare", help="would other reward settings teach the same? the advantages of both, over a run's dialogues"
    )
    _add_reward(compare)
    compare.add_argument("--json", action="store_true", help="print the figures as JSON")
    compare.set_defaults(run=_told(_compare))
    plot = records.add_parser("plot", help="draw the learning curve of a run as PNG")
    plot.add_argument("directory", type=Path)
    plot.add_argument("--out", type=Path, help="default: DIRECTORY/learning_curve.png")
    plot.set_defaults(run=_told(_plot))
    add_records_report(records)


def _add_reward(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", default="paper", help="paper | paper_v2 | reference")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of steer.reward, e.g. alpha=0"
    )
    parser.add_argument("--min-scored", type=float, default=1.0, help="steer.dialogue.min_scored of the run")
    parser.add_argument("--split", default="train", choices=("train", "val"))


def _told(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`guarded`; reward settings that cannot be are said in a line, too."""

    def run(arguments: argparse.Namespace) -> int:
        from verl_steer.config import ConfigError

        try:
            return guarded(action)(arguments)
        except ConfigError as error:
            sys.stderr.write(f"verl-steer: {error}\n")
            return 2

    return run


def _rescored(arguments: argparse.Namespace) -> Iterator[Record]:
    import yaml

    from verl_steer.config import ConfigError, SteerConfig
    from verl_steer.records import RecordError, rescore

    keys = {"preset": arguments.preset}
    for item in arguments.set:
        name, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item}: write KEY=VALUE, e.g. alpha=0")
        try:
            keys[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            why = " ".join(str(getattr(error, "problem", None) or error).split())
            raise ConfigError(
                f"--set {item}: the value is no YAML: {why}; write it as in a recipe, e.g. 'weights={{safety: 1}}'"
            ) from error
    reward = SteerConfig.from_mapping({"reward": keys}).reward.resolve()
    found = False
    for line in rescore(arguments.directory, reward, arguments.split, arguments.min_scored):
        found = True
        yield line
    if not found:
        raise RecordError(f"{arguments.directory} holds no {arguments.split} records; give the records folder of a run")


def _rescore(arguments: argparse.Namespace) -> int:
    for line in _rescored(arguments):
        sys.stdout.write(json.dumps(line) + "\n")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from verl_steer.records import read_records
    from verl_steer.rewards_compared import compare

    found = compare(read_records(arguments.directory, arguments.split), _rescored(arguments))
    if arguments.json:
        sys.stdout.write(json.dumps(found.to_json(), allow_nan=False) + "\n")
        return 0
    sys.stdout.write(
        f"{found.rollouts} rollouts; {found.informative:.1%} have an advantage under either setting. Of these:\n"
        f"  correlation of the two advantages  {found.correlation:.3f}\n"
        f"  same sign                          {found.same_sign:.1%}\n"
        f"  scale, these settings / the run's  {found.scale:.3f}\n"
    )
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    from verl_steer.curves import plot_learning_curve
    from verl_steer.records import RecordError

    try:
        out = plot_learning_curve(arguments.directory, arguments.out or arguments.directory / "learning_curve.png")
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"{arguments.directory}: a record lacks what a curve needs: {type(error).__name__}: {error}"
        ) from error
    sys.stdout.write(f"{out}\n")
    return 0
