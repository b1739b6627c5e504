"""A measurement in a process of its own, so that nothing before it is in its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def peak_mib() -> float:
    """Peak resident memory of this process so far (Linux). Not ru_maxrss, which begins with what the parent held at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measure(program: str, *arguments: str) -> dict[str, Any]:
    """Runs `program --run ARGUMENTS`, which prints its figures as JSON in its last line.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    done = subprocess.run([sys.executable, program, "--run", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
