"""Wall time of one rollout step over its lower bound: does anything wait that need not?

    python benchmarks/rollout.py                       # 320 dialogues x 8 turns, fixed latency, then log-normal
    python benchmarks/rollout.py --quick               # 64 dialogues x 4 turns, shorter latencies

The real agent loop and tutor client in verl's own worker; student and tutor are processes of their own
(`latency_server.py`) with 64 slots each and a mean latency of S = 1 s and J = 2 s. No schedule beats

    LB = max(longest dialogue, student work / student slots, tutor work / tutor slots),

computed from the latencies that were drawn in this very run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import httpx
from json_line import last_line
from latency_server import LatencyServer, latency_server

from verl_steer.chat.pool import Pool
from verl_steer.plugin.settings import settings_for

GOALS = {"fixed": 1.05, "log-normal": 1.15}
Call = Sequence[Any]  # dialogue, turn, latency drawn, latency slept


@dataclass(frozen=True)
class Bound:
    """Seconds below which no schedule gets.

    Attributes:
        longest_s: The longest dialogue: its own latencies, one after the other.
        student_s: All of the student's work over its slots.
        tutor_s: All of the tutor's work over its slots.
    """

    longest_s: float
    student_s: float
    tutor_s: float

    @property
    def seconds(self) -> float:
        """The largest of the three."""
        return max(self.longest_s, self.student_s, self.tutor_s)


def lower_bound(student: Sequence[Call], tutor: Sequence[Call], slots: int, column: int = 2) -> Bound:
    """The bound of these calls.

    Args:
        student: Calls as `LatencyServer.stats` lists them.
        tutor: Likewise.
        slots: Of each server.
        column: 2: latencies as drawn; 3: as slept, the server's own lateness included.
    """
    own: dict[str, float] = defaultdict(float)
    for call in [*student, *tutor]:
        own[call[0]] += call[column]
    work = [sum(call[column] for call in calls) / slots for calls in (student, tutor)]
    return Bound(max(own.values()), *work)


class HttpStudent:
    """verl's `LLMServerClient` for a student behind HTTP."""

    def __init__(self, root: str, keepalive_s: float = 30.0) -> None:
        self._root = root
        self._turns: dict[str, int] = defaultdict(int)
        self._http = httpx.AsyncClient(timeout=None, transport=Pool(httpx.create_ssl_context(), keepalive_s))

    async def generate(
        self, *, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> Any:
        """One reply of the student."""
        self._turns[request_id] += 1
        body = {
            "request_id": request_id,
            "turn": self._turns[request_id],
            "prompt_ids": prompt_ids,
            "sampling_params": sampling_params,
        }
        answer = (await self._http.post(f"{self._root}/generate", json=body)).raise_for_status().json()
        return SimpleNamespace(**answer, extra_fields={"min_global_steps": 1, "max_global_steps": 1})

    def forget(self) -> None:
        """Drops the turn counts of finished dialogues."""
        self._turns.clear()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


@dataclass(frozen=True)
class Case:
    """What is measured."""

    sigma: float
    dialogues: int
    turns: int
    student_s: float
    tutor_s: float
    slots: int
    siblings: int
    tutor_concurrency: int
    seed: int


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """One step against fresh servers."""
    common = {"sigma": case.sigma, "capacity": case.slots, "seed": case.seed}
    with (
        latency_server("student", mean_s=case.student_s, student=folder, **common) as student,
        latency_server("tutor", mean_s=case.tutor_s, **common) as tutor,
        harness.transfer_queue(harness.Sink(count_only=True)) as sink,
    ):
        config = harness.config_for(
            folder,
            f"steer.tutor.base_urls=[{tutor.root}/v1]",
            f"steer.tutor.max_concurrency={case.tutor_concurrency}",
        )
        wall, cpu, lag = asyncio.run(_step(case, config, student, tutor))
        calls = student.stats()["calls"], tutor.stats()["calls"]
        queue = tutor.stats()["deepest_queue"]
    expected = case.dialogues * case.turns
    if sink.failed or [len(c) for c in calls] != [expected, expected]:
        raise RuntimeError(f"{len(sink.failed)} prompts failed; {[len(c) for c in calls]} calls for {expected} turns")
    bound, slept = lower_bound(*calls, case.slots), lower_bound(*calls, case.slots, column=3)
    return {
        "wall_s": round(wall, 2),
        "bound_s": round(bound.seconds, 2),
        "ratio": round(wall / bound.seconds, 4),
        "ratio_to_latencies_as_slept": round(wall / slept.seconds, 4),
        "bounds": {key: round(value, 2) for key, value in asdict(bound).items()},
        "own_cpu_s": round(cpu, 2),
        "deepest_tutor_queue": queue,
        "loop_lag_ms": {
            "longest_callback_cpu": round(1e3 * lag.callback_s, 1),
            "wall": round(1e3 * lag.wall_s, 1),
            "slowest": lag.slowest,
        },
    }


async def _step(case: Case, config: Any, student: LatencyServer, tutor: LatencyServer) -> tuple[float, float, Any]:
    server = HttpStudent(student.root)
    worker = harness.worker_for(config, server)
    # The first dialogue of a process pays for imports and connections; a step of training is not its first.
    await harness.play(worker, [harness.prompt_of(harness.script(10**6, 1), 0, 1)])
    student.reset()
    tutor.reset()
    seeds = case.dialogues // case.siblings
    prompts = [harness.prompt_of(harness.script(n, case.turns), n, case.siblings) for n in range(seeds)]
    async with harness.LagMonitor() as lag:
        start, cpu = time.perf_counter(), time.process_time()
        await harness.play(worker, prompts)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    await server.aclose()
    await settings_for(config).tutor.aclose()
    return wall, cpu, lag


def main() -> int:
    """Measures and prints; exit status 0 if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 dialogues x 4 turns, S = 0.5 s, J = 1 s, 16 slots")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the log-normal's logarithm")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--tutor-concurrency", type=int, default=256, help="steer.tutor.max_concurrency")
    given = parser.parse_args()
    size = (
        {"dialogues": 64, "turns": 4, "student_s": 0.5, "tutor_s": 1.0, "slots": 16}
        if given.quick
        else {"dialogues": 320, "turns": 8, "student_s": 1.0, "tutor_s": 2.0, "slots": 64}
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        student = harness.build_student(Path(folder))
        for name, sigma in (("fixed", 0.0), ("log-normal", given.sigma)):
            case = Case(
                sigma=sigma, siblings=8, tutor_concurrency=given.tutor_concurrency, seed=given.seed, **size
            )  # fmt: skip
            found[name] = measure(case, student)
            print(f"{name}: {found[name]}", flush=True)
    worst = max(GOALS, key=lambda name: found[name]["ratio"] / GOALS[name])
    return last_line(
        "rollout",
        found[worst]["wall_s"],
        f"s of wall time, {worst} latency (the case nearer to its goal)",
        found[worst]["bound_s"],
        " and ".join(f"ratio <= {goal} ({name})" for name, goal in GOALS.items()),
        all(found[name]["ratio"] <= goal for name, goal in GOALS.items()),
        {**size, "sigma": given.sigma, "tutor_concurrency": given.tutor_concurrency, **found},
    )


if __name__ == "__main__":
    raise SystemExit(main())
