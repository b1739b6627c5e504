"""A step's process group and its log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from verl_steer.chat.text import visible


def tail(log: Path, characters: int = 300) -> str:
    """The end of a log, on one line and safe to print."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - characters))
        return visible(" ".join(file.read().decode(errors="replace").split()))


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to the group that the process leads; a group that is gone needs none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
