"""What the benchmarks of the loop share: verl's own worker in this process, scripts, and the last line.

The worker is the class that verl's V1 trainer runs as a Ray actor, with our additions. Only its two
neighbours are stand-ins: TransferQueue (`Sink` takes the finished rollouts) and the rollout server (any
object with verl's `generate`). There is no reward worker, so scoring is not measured.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in a Ray actor: torch's threads would spin beside the loop's

from hydra import compose, initialize_config_module
from PIL import Image
from verl.trainer.ppo.v1 import agent_loop_tq

from verl_steer.data.rows import script_to_row
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.plugin.worker import SteerAgentLoopWorker

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_model import build_tiny_vlm

PlainWorker: Any = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


class Sink:
    """Plays TransferQueue: keeps what the worker hands on of each rollout, or only counts it."""

    def __init__(self, count_only: bool = False) -> None:
        self.count = 0
        self.count_only = count_only
        self.fields: dict[str, Any] = {}
        self.failed: list[str] = []

    def init(self) -> None:
        """Nothing to connect to."""

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        """The state of a prompt."""
        if tag["status"] == "failure":
            self.failed.append(key)

    async def async_kv_batch_put(self, keys: list[str], fields: Any, tags: list[dict[str, Any]], **_: Any) -> None:
        """One finished rollout."""
        self.count += len(keys)
        if not self.count_only:
            self.fields.update(dict.fromkeys(keys, fields))


@contextmanager
def transfer_queue(sink: Sink) -> Iterator[Sink]:
    """verl's worker writes into `sink` while the context lasts."""
    real = agent_loop_tq.tq
    agent_loop_tq.tq = sink
    try:
        yield sink
    finally:
        agent_loop_tq.tq = real


def build_student(folder: Path) -> Path:
    """A tiny Qwen2.5-VL (tests/tiny_model.py): only its tokenizer and processor are used."""
    return build_tiny_vlm(folder / "student")


def config_for(student: Path, *overrides: str) -> Any:
    """The recipe `steer_grpo` with an endpoint tutor and `student`; its URLs come with `overrides`."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                "+recipe=steer_grpo",
                f"actor_rollout_ref.model.path={student}",
                "steer.tutor.kind=endpoint",
                "steer.tutor.model=tutor",
                "actor_rollout_ref.rollout.agent.num_workers=1",
                "data.max_prompt_length=4096",
                "data.max_response_length=16384",
                *overrides,
            ],
        )


def worker_for(config: Any, server: Any, plain: bool = False) -> Any:
    """verl's V1 agent-loop worker, ours or the plain one, inside `transfer_queue`."""
    return (PlainWorker if plain else SteerAgentLoopWorker)(config, server)


def picture(side: int, seed: int = 0) -> ImageRef:
    """A noisy JPEG of side x side pixels: noise, since a plain area would decode and encode too cheaply."""
    noise = random.Random(seed).randbytes(side * side * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), noise).save(buffer, "JPEG", quality=80)
    return ImageRef(buffer.getvalue())


def decoded(ref: ImageRef) -> Image.Image:
    """The picture as verl's data set hands it on."""
    return Image.open(io.BytesIO(ref.data)).convert("RGB")


def script(number: int, turns: int, question_chars: int = 60, side: int = 112) -> Script:
    """Script `number`: one picture in the first turn, questions of one length."""
    images = (picture(side, number),) if side else ()
    texts = [f"Question {t} of script {number}: ".ljust(question_chars, "w") for t in range(1, turns + 1)]
    return Script(
        f"seed-{number}", Kind.RED_TEAM, tuple(UserTurn(x, images if n == 0 else ()) for n, x in enumerate(texts))
    )


def prompt_of(planned: Script, number: int, rollouts: int, step: int = 1) -> dict[str, Any]:
    """What verl's worker gets for one row of a batch."""
    row = script_to_row(planned, number, "rl")
    return {
        **row,
        "raw_prompt": row["prompt"],
        "uid": f"{planned.seed_id}-{step}",
        "index": number,
        "global_steps": step,
        "__rollout_n__": rollouts,
    }


async def play(worker: Any, prompts: list[dict[str, Any]], step: int = 1) -> None:
    """One step: every rollout of every prompt, through verl's own `_run_prompt`."""
    where = {"step": step, "sample_index": 0, "rollout_n": 0, "validate": False}
    await asyncio.gather(*(worker._run_prompt(dict(prompt), SAMPLING, trajectory=where) for prompt in prompts))


class LagMonitor:
    """How long the event loop kept a ready task waiting.

    Two figures. `wall_s`: by how much a sleeping task woke up late, another process's use of the
    processor included. `callback_s`: processor time of the main thread inside the longest single callback,
    which a busy machine does not disturb: what the loop really did without giving way.
    """

    def __init__(self, period_s: float = 0.002) -> None:
        self.wall_s = self.callback_s = 0.0
        self.slowest = ""
        self._period_s = period_s
        self._run = asyncio.Handle._run

    async def __aenter__(self) -> LagMonitor:
        run, monitor = self._run, self

        def timed(handle: asyncio.Handle) -> None:
            start = time.thread_time()
            run(handle)
            taken = time.thread_time() - start
            if taken > monitor.callback_s:
                monitor.callback_s, monitor.slowest = taken, repr(handle)[:200]

        asyncio.Handle._run = timed  # type: ignore[method-assign]
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.Handle._run = self._run  # type: ignore[method-assign]
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(self._period_s)
            self.wall_s = max(self.wall_s, time.perf_counter() - start - self._period_s)
