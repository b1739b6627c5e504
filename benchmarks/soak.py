"""Does a long run grow? Dialogues at full concurrency for half an hour, against servers in other processes.

    python benchmarks/soak.py --minutes 30
    python benchmarks/soak.py --quick             # some seconds: too short for the figure, long enough for leaks

The real agent loop and tutor client in verl's own worker, step after step of 320 dialogues x 4 turns with
short latencies, so that half an hour sees as many calls as days of training. A part of the tutor's answers is
lost: the client's retries and deadlines are soaked too. After each step, with nothing under way, memory,
sockets, asyncio tasks and threads are counted. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import psutil
from json_line import last_line
from latency_server import LatencyServer, latency_server
from rollout import HttpStudent

from verl_steer.plugin.settings import settings_for

GOAL_GROWTH = 1.05
KEEPALIVE_S = 4.0  # as the tutor's client
WARM_UP = 1 / 6  # of the steps: caches fill, allocators find their size


@dataclass(frozen=True)
class Sample:
    """What this process holds when no dialogue runs.

    Attributes:
        rss: Resident bytes.
        sockets: Open sockets.
        tasks: asyncio tasks, the measuring one included.
        threads: Threads.
    """

    rss: int
    sockets: int
    tasks: int
    threads: int


def sample() -> Sample:
    """Counts now."""
    gc.collect()
    process = psutil.Process()
    return Sample(
        process.memory_info().rss,
        len(process.net_connections("all")),
        len(asyncio.all_tasks()),
        threading.active_count(),
    )


def growth(values: Sequence[float], warm_up: float = WARM_UP) -> float:
    """Last sixth over the first sixth after warm-up; medians, so that one odd sample decides nothing.

    Args:
        values: A sample a step, at least 3.
        warm_up: Share of the steps left out at the start.
    """
    if len(values) < 3:
        raise ValueError(f"{len(values)} samples are too few to see growth; run longer")
    kept = list(values[max(1, int(len(values) * warm_up)) :])
    window = max(1, len(kept) // 6)
    return statistics.median(kept[-window:]) / statistics.median(kept[:window])


def leaked(first: Sample, last: Sample) -> dict[str, int]:
    """By how much sockets, tasks and threads rose between two settled samples."""
    return {name: getattr(last, name) - getattr(first, name) for name in ("sockets", "tasks", "threads")}


async def settled(worker: Any) -> Sample:
    """Counts once the connections of the last peak are too old to be kept: one short dialogue closes them."""
    await asyncio.sleep(KEEPALIVE_S + 1)
    await harness.play(worker, [harness.prompt_of(harness.script(10**6, 1), 0, 1)])
    return sample()


@dataclass
class Soaked:
    """What was seen.

    Attributes:
        before: Before anything was opened.
        first: Settled, after the first step.
        steps: After every step.
        last: Settled, after the last step.
        after: With everything closed.
    """

    before: Sample
    first: Sample
    steps: list[Sample]
    last: Sample
    after: Sample


async def soak(config: Any, student: LatencyServer, seconds: float, dialogues: int, turns: int) -> Soaked:
    """Steps until the time is over."""
    before = sample()
    server = HttpStudent(student.root, KEEPALIVE_S)
    worker = harness.worker_for(config, server)
    end, samples, first = time.monotonic() + seconds, [], before
    while time.monotonic() < end or len(samples) < 3:
        step = len(samples) + 1
        scripts = [harness.script(8 * step + n, turns) for n in range(dialogues // 8)]
        await harness.play(worker, [harness.prompt_of(planned, n, 8, step) for n, planned in enumerate(scripts)], step)
        server.forget()
        samples.append(sample())
        if step == 1:
            first = await settled(worker)
        if step % 10 == 1:
            print(f"step {step}: {samples[-1].rss / 2**20:.0f} MiB, {samples[-1]}", flush=True)
    last = await settled(worker)
    await server.aclose()
    await settings_for(config).tutor.aclose()
    await asyncio.sleep(0.2)
    return Soaked(before, first, samples, last, sample())


def main() -> int:
    """Soaks and prints; exit status 0 if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true", help="ten seconds of 64 dialogues")
    parser.add_argument("--dialogues", type=int, default=320)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--lost", type=float, default=0.02, help="share of the tutor's answers that never come")
    given = parser.parse_args()
    minutes, dialogues = (1 / 6, 64) if given.quick else (given.minutes, given.dialogues)
    with (
        tempfile.TemporaryDirectory() as folder,
        harness.transfer_queue(harness.Sink(count_only=True)) as sink,
    ):
        model = harness.build_student(Path(folder))
        with (
            latency_server("student", mean_s=0.05, sigma=0.5, student=model, log=False) as student,
            latency_server("tutor", mean_s=0.1, sigma=0.5, log=False, lost=given.lost) as tutor,
        ):
            config = harness.config_for(
                model,
                f"steer.tutor.base_urls=[{tutor.root}/v1]",
                "steer.tutor.timeout_s=10",
            )
            found = asyncio.run(soak(config, student, 60 * minutes, dialogues, given.turns))
            server_rss = {
                name: psutil.Process(s.process.pid).memory_info().rss for name, s in (("student", student), ("tutor", tutor))
            }  # fmt: skip
    ratio = growth([s.rss for s in found.steps])
    rose = leaked(found.first, found.last)
    left = leaked(found.before, found.after)
    del left["threads"]  # asyncio's own executor keeps its threads until the loop is closed
    ok = ratio <= GOAL_GROWTH and not sink.failed and max(*rose.values(), *left.values()) <= 0
    return last_line(
        "soak",
        ratio,
        "resident memory at the end over that after warm-up",
        1.0,
        f"<= {GOAL_GROWTH}; no socket, task or thread more after the last step than after the first; none left at the end",
        ok,
        {
            "minutes": minutes,
            "steps": len(found.steps),
            "dialogues": sink.count,
            "turns": sink.count * given.turns,
            "failed_prompts": len(sink.failed),
            "rose": rose,
            "left_after_closing": left,
            "first": asdict(found.first),
            "last": asdict(found.last),
            "most_sockets": max(s.sockets for s in found.steps),
            "peak_rss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "server_rss": server_rss,
        },
        digits=4,
    )


if __name__ == "__main__":
    raise SystemExit(main())
