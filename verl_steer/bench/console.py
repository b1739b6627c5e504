"""What the bench's commands share: errors in a line, Ctrl-C, and a bar that counts how things end."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from verl_steer.extras import install_command

Advance = Callable[[str], None]
_EXTRA = ("scipy", "jinja2", "matplotlib")


def guarded(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Errors in a line, exit status 2; Ctrl-C leaves everything resumable, exit status 130."""

    def run(arguments: argparse.Namespace) -> int:
        from verl_steer.bench.lines import BenchError
        from verl_steer.chat.cache import CacheError
        from verl_steer.chat.endpoints import ChatConfigError
        from verl_steer.chat.journal import JournalError
        from verl_steer.chat.outage import ModelOutage
        from verl_steer.local.checkpoint import CheckpointError
        from verl_steer.records import RecordError

        # An outage leaves everything resumable, too.
        told = (
            BenchError,
            CacheError,
            ChatConfigError,
            CheckpointError,
            JournalError,
            ModelOutage,
            OSError,
            RecordError,
        )
        try:
            return action(arguments)
        except BrokenPipeError:  # the reader of our output has gone, which `cli.main` knows how to end
            raise
        except told as error:
            return _say(error)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRA:
                raise
            return _say(f"{error.name} is missing; {install_command('bench')}")
        except KeyboardInterrupt:
            sys.stderr.write("\nverl-steer: stopped; what is written is whole, and the same command goes on\n")
            return 130
        except BaseExceptionGroup as group:  # of tasks side by side; the first one says what was wrong
            told_of, others = group.split((*told, ValueError))
            if others is not None or told_of is None:
                raise
            return _say(_leaf(told_of))

    return run


def _leaf(error: BaseException) -> BaseException:
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _say(error: BaseException | str) -> int:
    from verl_steer.chat.text import visible

    sys.stderr.write(f"verl-steer: {visible(str(error))}\n")  # a server's words may be in it
    return 2


def in_a_line(text: str, length: int = 160) -> str:
    """What a model or a server said, for a terminal: one line without control signs."""
    from verl_steer.chat.text import visible

    return " ".join(visible(text).split())[:length]


@contextmanager
def progress_of(what: str, total: int) -> Iterator[Advance]:
    """A bar that also counts how things ended."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    told = TextColumn("{task.fields[told]}")
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), told, TimeRemainingColumn()
    counts: Counter[str] = Counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, told="")

        def advance(how: str) -> None:
            counts[how] += 1
            bar.update(task, advance=1, told=", ".join(f"{times} {name}" for name, times in counts.most_common()))

        yield advance
