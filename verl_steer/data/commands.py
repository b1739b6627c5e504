"""The command `verl-steer data`: sources | convert | validate | show | export | card."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SPLITS = ("seed", "script", "rl", "sft", "bench")


def add(commands: Any) -> Any:
    """Adds `data` and its actions to the subparsers of `verl-steer`; returns the actions, so that others can join."""
    actions = commands.add_parser("data", help="published sources into splits").add_subparsers(
        required=True, metavar="ACTION"
    )
    sources = actions.add_parser("sources", help="the adapters: columns, licences, splits")
    sources.add_argument("--json", action="store_true")
    sources.set_defaults(run=guarded(_sources))
    _add_convert(actions.add_parser("convert", help="a source into one split (parquet)"))

    validate = actions.add_parser("validate", help="check every row of a split or of an exported file")
    validate.add_argument("file", type=Path)
    validate.set_defaults(run=guarded(_validate))
    show = actions.add_parser("show", help="print one row of a split or of an exported file")
    show.add_argument("file", type=Path)
    show.add_argument("row", type=int, help="0-based")
    show.set_defaults(run=guarded(_show))
    export = actions.add_parser("export", help="a split into a format that other tools read")
    export.add_argument("file", type=Path)
    export.add_argument(
        "--to", required=True, help="llamafactory | reference_rl | reference_bench | bench_jsonl | rl | script"
    )
    export.add_argument("--out", required=True, type=Path, help="file to write; images/ and the rest come beside it")
    export.set_defaults(run=guarded(_export))
    card = actions.add_parser("card", help="a Hugging Face data set card with figures and a turn histogram")
    card.add_argument("file", type=Path)
    card.add_argument("--out", type=Path, help="folder for README.md and turns.png; default: FILE.card")
    card.set_defaults(run=guarded(_card))
    return actions


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a name of `verl-steer data sources`")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders as downloaded; none: stream from the hub")
    parser.add_argument("--to", required=True, choices=SPLITS)
    parser.add_argument("--out", required=True, type=Path, help="parquet file to write")
    parser.add_argument(
        "--images", type=Path, help="folder that relative picture paths begin in (default: the table's)"
    )
    parser.add_argument("--size", default="keep", help="keep | max512-pad386 | area338-512")
    parser.add_argument("--max-bytes", type=int, default=32 * 2**20, help="of one picture file (default 32 MiB)")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, help="of one picture (default 50 million)")
    parser.add_argument("--hub", default="", help="data set id, if not the source's own")
    parser.add_argument("--config", default="", help="configuration on the hub")
    parser.add_argument("--split", default="", help="split on the hub or in a saved DatasetDict; other files are named")
    parser.add_argument("--kind", choices=("benign", "obfuscated", "red_team"), help="instead of the source's")
    parser.add_argument("--subset", default="", help="subset of bench rows, instead of the source's")
    parser.add_argument("--image", type=Path, help="a picture to show in every dialogue")
    parser.add_argument("--image-turn", type=int, default=1, help="the turn that shows it (default 1)")
    parser.add_argument(
        "--last-question", action="store_true", help="keep the last user question of a conversation alone"
    )
    parser.add_argument("--limit", type=int, default=0, help="stop after so many rows")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode pictures (default 2)")
    parser.set_defaults(run=guarded(_convert))


def guarded(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Errors in a line, exit status 2; Ctrl-C leaves everything resumable, exit status 130."""

    def run(arguments: argparse.Namespace) -> int:
        from verl_steer.checked import ConfigError
        from verl_steer.data.rows import DataError, RowError

        try:
            return action(arguments)
        except BrokenPipeError:  # the reader of our output has gone, which `cli.main` knows how to end
            raise
        except (ConfigError, DataError, RowError, OSError) as error:
            sys.stderr.write(f"verl-steer: {error}\n")
            return 2
        except KeyboardInterrupt:
            sys.stderr.write("\nverl-steer: stopped; the same command goes on where it was\n")
            return 130

    return run


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn(what),
        TextColumn("{task.fields[read]} read, {task.fields[rejected]} rejected"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, read=0, rejected=0)
        yield lambda read, rejected: bar.update(task, read=read, rejected=rejected)


def _sources(arguments: argparse.Namespace) -> int:
    from verl_steer.data import sources

    found = [sources.get(name) for name in sources.NAMES]
    if arguments.json:
        fields = ("name", "title", "hub", "licence", "splits", "files", "layouts", "pictures", "replies")
        rows = [{f: getattr(s, f) for f in fields} | {"kind": s.kind.value} for s in found]
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return 0
    for s in found:
        sys.stdout.write(f"{s.name}: {s.title}\n")
        about = [s.hub or "not on the hub", s.licence or "no licence stated", s.kind.value, f"splits: {s.splits}"]
        about.append({"row": "pictures in the table", "files": "pictures in files", "none": "text only"}[s.pictures])
        sys.stdout.write(f"  {'; '.join([*about, 'with replies' if s.replies else 'no replies'])}\n")
        for layout in s.layouts:
            sys.stdout.write(f"  columns: {', '.join(layout)}\n")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from verl_steer.data import sources
    from verl_steer.data.convert import convert
    from verl_steer.data.images import SIZES, ImagePolicy
    from verl_steer.data.options import Options
    from verl_steer.data.rows import DataError
    from verl_steer.dialogue import Kind

    if arguments.size not in SIZES:
        raise DataError(f"--size {arguments.size} is not one of {', '.join(SIZES)}")
    source = sources.get(arguments.source)
    given = vars(arguments)
    names = (
        "to",
        "hub",
        "config",
        "split",
        "images",
        "image",
        "image_turn",
        "subset",
        "last_question",
        "limit",
        "workers",
    )
    options = Options(
        paths=tuple(arguments.paths),
        policy=ImagePolicy(arguments.max_bytes, arguments.max_pixels, arguments.size),
        kind=Kind(arguments.kind) if arguments.kind else None,
        **{name: given[name] for name in names},
    )
    with progress_bar(source.name) as progress:
        account = convert(source, options, arguments.out, progress)
    sys.stdout.write(
        f"{account.read} rows in = {account.written} written + {account.rejected} rejected -> {arguments.out}\n"
    )
    if account.earlier:
        sys.stdout.write(
            f"that was finished before, nothing was read; remove {arguments.out}.account.json to convert again\n"
        )
    _why(account.rejected_path, account.rejected)
    if account.missing:
        sys.stdout.write(f"{account.missing} lack the file of a picture; put it there and repeat the command\n")
    return 1 if account.read and not account.written else 0


def _why(path: Path, count: int) -> None:
    """The commonest reasons, and where all of them stand."""
    if not count:
        return
    reasons: Counter[str] = Counter()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            reasons[str(json.loads(line)["reason"])[:240]] += 1
    for reason, times in reasons.most_common(5):
        sys.stdout.write(f"  {times} x {reason}\n")
    sys.stdout.write(f"each of them, with its reason: {path}\n")


def _validate(arguments: argparse.Namespace) -> int:
    from verl_steer.data.formats import read_any
    from verl_steer.data.validate import validate

    name, rows = read_any(arguments.file)
    good, faults = validate(rows)
    for number, reason in faults[:20]:
        sys.stdout.write(f"row {number}: {reason}\n")
    if len(faults) > 20:
        sys.stdout.write(f"... and {len(faults) - 20} more\n")
    sys.stdout.write(f"{arguments.file} ({name}): {good + len(faults)} rows = {good} valid + {len(faults)} not\n")
    return 1 if faults else 0


def _show(arguments: argparse.Namespace) -> int:
    from verl_steer.data.formats import read_any
    from verl_steer.data.rows import DataError, RowError
    from verl_steer.data.validate import describe

    name, rows = read_any(arguments.file)
    for number, row in enumerate(rows):
        if number == arguments.row:
            if isinstance(row, RowError):
                raise row
            sys.stdout.write(describe(name, row))
            return 0
    raise DataError(f"{arguments.file} has no row {arguments.row}")


def _export(arguments: argparse.Namespace) -> int:
    from verl_steer.data.formats import export

    with progress_bar(arguments.to) as progress:
        account, dropped = export(arguments.file, arguments.to, arguments.out, progress)
    sys.stdout.write(
        f"{account.read} rows in = {account.written} written + {account.rejected} rejected -> {arguments.out}\n"
        f"{arguments.to} cannot hold: {', '.join(dropped) or 'nothing is lost'}\n"
    )
    _why(account.rejected_path, account.rejected)
    return 0


def _card(arguments: argparse.Namespace) -> int:
    from verl_steer.data.card import write_card

    sys.stdout.write(f"{write_card(arguments.file, arguments.out)}\n")
    return 0
