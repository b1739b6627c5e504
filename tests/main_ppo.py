"""Runs verl's real entry point in a process of its own, with a wall-clock limit, and reads what it printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TIMEOUT_S = 420


def main_ppo(
    folder: Path, *overrides: str, until: Callable[[], bool] | None = None, timeout_s: float = TIMEOUT_S
) -> tuple[int, str]:
    """Runs `python -m verl.trainer.main_ppo` with `overrides` in `folder`.

    Args:
        folder: Working directory; the output goes to `output.txt` there.
        overrides: Hydra overrides.
        until: If given, the whole process group is killed (SIGKILL) as soon as this is true.
        timeout_s: Wall-clock limit; past it the run is killed.

    Returns:
        Exit status (-9 if killed) and everything that was printed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1", "HF_HUB_OFFLINE": "1"}
    log = folder / "output.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "verl.trainer.main_ppo", *overrides],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout_s
        try:
            while process.poll() is None and time.monotonic() < deadline and not (until and until()):
                time.sleep(0.2)
        finally:
            # Ray's own processes end with their driver, which must be gone whatever happened.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return process.returncode, log.read_text()


def series(output: str, metric: str) -> list[float]:
    """A metric's value at every step, from verl's console logger."""
    return [float(v) for v in re.findall(rf"[ -]{re.escape(metric)}:(?:np\.float\d+\()?(-?[\d.einfa+-]*\d)", output)]


SMALL = (
    "data.train_batch_size=4",
    "data.max_prompt_length=256",
    "data.max_response_length=320",
    "data.dataloader_num_workers=0",
    "steer.dialogue.max_turn_tokens=16",
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "reward.num_workers=1",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
)
"""What makes a run small enough for a test; recipe sizes stay untouched elsewhere."""
