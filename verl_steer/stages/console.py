"""What is told while the stages run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from verl_steer.stages.plan import ARMS


@dataclass(frozen=True)
class Task:
    """One step of one seed: `world`, `rows`, `stage2` or the name of an arm."""

    seed: int
    name: str


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[Task, str], None]]:
    """A bar over the results to come; prints what ends and what fails."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("three stages"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with Progress(*columns, TimeElapsedColumn()) as bar:
        task_id = bar.add_task("", total=total)
        under_way: dict[Task, None] = {}
        one_at_a_time = threading.Lock()  # every step tells from a thread of its own

        def tell(task: Task, what: str) -> None:
            with one_at_a_time:
                if what == "begins":
                    under_way[task] = None
                else:
                    under_way.pop(task, None)
                    bar.console.print(f"seed {task.seed} {task.name}: {what}", markup=False)
                done = what == "ends" and task.name in ARMS
                names = ", ".join(f"{t.name} of {t.seed}" for t in under_way)
                bar.update(task_id, advance=int(done), description=names)

        yield tell
