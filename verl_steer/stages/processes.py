"""Steps as processes: each with a log, its time, and children that end with it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from verl_steer.chat.text import visible
from verl_steer.stages.plan import Place
from verl_steer.whole import write_text

_GRACE_S = 10.0
#: What is left of a step that has ended may still hold its log for a moment.
_LINGERS_S = 10.0


class StepError(RuntimeError):
    """A step ended with an error; the message names its log."""


class Steps:
    """The processes of an experiment; several may run at once, from several threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, place: Place, name: str, command: list[str]) -> None:
        """Runs a command; its output goes to `logs/NAME.txt`, its time is kept, an error is told with the log's end.

        The log is locked while anything of the step lives: no two processes train in one folder, also where an earlier command
        was killed and what it had started goes on.

        Raises:
            StepError: It ended with another status than 0, another process is at this step, or everything was stopped.
        """
        log = place.folder / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with log.open("ab") as output:
            _lock(output, f"{name} of seed {place.seed}", log)
            process = self._start(command, output, place.folder)
            try:
                status = process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        self._remember(place, name, time.monotonic() - began)
        if status:
            raise StepError(
                f"{name} of seed {place.seed} ended with status {status}; its end says: {_tail(log)} ({log})"
            )

    def check(self) -> None:
        """Nothing new is begun after a stop.

        Raises:
            StepError: Everything was stopped.
        """
        if self._stopped:
            raise StepError("stopped")

    def stop(self) -> None:
        """Ends every process that is under way, with its children."""
        self._stopped = True
        with self._lock:
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGTERM)
        end = time.monotonic() + _GRACE_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            _signal_group(process, signal.SIGKILL)

    def seconds(self, place: Place) -> dict[str, float]:
        """Wall time of every step of a seed, over all its attempts."""
        path = place.folder / "seconds.json"
        found: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    def _start(self, command: list[str], output: Any, folder: Path) -> subprocess.Popen[bytes]:
        # A thread a process: two processes share the cores; a session of its own, so that its children end with it.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HYDRA_FULL_ERROR": "1"}
        with self._lock:
            self.check()
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
            )
            self._running.add(process)
        return process

    def _remember(self, place: Place, name: str, seconds: float) -> None:
        with self._lock, (place.folder / "logs" / ".seconds.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of another command on the same seed
            known = self.seconds(place)
            known[name] = round(known.get(name, 0.0) + seconds, 1)
            write_text(place.folder / "seconds.json", json.dumps(known, indent=1, sort_keys=True) + "\n")


def _lock(output: Any, step: str, log: Path) -> None:
    """Locks an open log; whatever inherits it holds the lock, too."""
    end = time.monotonic() + _LINGERS_S
    while True:
        try:
            return fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise StepError(
                    f"{step} is under way in another process, which may be what an earlier command left behind: wait for it or "
                    f"end it (`fuser {log}` names it), then give the same command again"
                ) from error
            time.sleep(0.2)


def _tail(log: Path, characters: int = 300) -> str:
    """The end of a log, on one line and safe to print."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - characters))
        return visible(" ".join(file.read().decode(errors="replace").split()))


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to the group that the process leads; a group that is gone needs none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
