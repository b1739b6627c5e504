"""The command `verl-steer data disjoint`: no seed, picture or text of one split stands in another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from verl_steer.data.commands import guarded, progress_bar


def add(actions: Any) -> None:
    """Adds the action to those of `verl-steer data`."""
    parser = actions.add_parser("disjoint", help="check that split files share no seed, picture or text")
    parser.add_argument("files", nargs="+", type=Path, help="two or more splits; each is compared with those before it")
    parser.add_argument("--threshold", type=float, default=0.8, help="Jaccard similarity of near rows (default 0.8)")
    parser.add_argument("--words", type=int, default=3, help="words a shingle (default 3)")
    parser.add_argument(
        "--pictures",
        default="any",
        choices=("any", "same"),
        help="near rows: any (default), or only rows that share a picture",
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="RULE", help="cluster | picture | exact_across | near_across"
    )
    parser.set_defaults(run=guarded(_disjoint))


def _disjoint(arguments: argparse.Namespace) -> int:
    from verl_steer.checked import ConfigError
    from verl_steer.data.rows import DataError
    from verl_steer.synthesis.disjoint import check
    from verl_steer.synthesis.selection_config import SelectionConfig

    near = {"threshold": arguments.threshold, "words": arguments.words, "across": arguments.pictures}
    try:
        config = SelectionConfig.from_mapping({"without": arguments.without, "near": near})
    except ConfigError as error:
        raise DataError(str(error)) from error
    read = 0
    with progress_bar("disjoint") as progress:

        def tick(rows: int) -> None:
            nonlocal read
            read += rows
            progress(read, 0)

        found = check(arguments.files, config, tick)
    for example in found.examples:
        sys.stdout.write(f"{example}\n")
    counts = ", ".join(f"{rule} {n}" for rule, n in sorted(found.overlaps.items()))
    if len(found.examples) < found.overlaps.total():
        sys.stdout.write(f"... and {found.overlaps.total() - len(found.examples)} more\n")
    rows = " + ".join(f"{n} ({Path(name).name})" for name, n in found.rows.items())
    sys.stdout.write(f"{rows} rows compared: {counts or 'nothing is shared'}\n")
    return 1 if found.overlaps else 0
