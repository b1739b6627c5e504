"""Runs verl's SFT trainer as a user does, in a process of its own, with a wall-clock limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

LAUNCH = (
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nnodes=1",
    "--nproc-per-node=1",
    "-m",
    "verl.trainer.sft_trainer",
)


def sft_trainer(folder: Path, *overrides: str, timeout_s: float = 180) -> tuple[int, str]:
    """Runs `torchrun … -m verl.trainer.sft_trainer` with `overrides` in `folder`; exit status and what was printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1", "HF_HUB_OFFLINE": "1"}
    log = folder / "sft_output.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *LAUNCH, *overrides],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return process.returncode, log.read_text()
