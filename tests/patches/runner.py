"""Runs test files against one verl after the other, each in a process of its own that starts in no time.

Importing torch, transformers and ray takes seconds; importing verl takes little. So this process imports
what verl stands on, never verl itself, and forks for every job: the child puts the job's copy of verl
first on its path and runs pytest. Jobs come as JSON lines on stdin, results go as JSON lines to stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from typing import Any

# What verl's modules import at their top; only the time depends on this list.
BEFOREHAND = (
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torchdata.stateful_dataloader",
    "tensordict",
    "transformers",
    "transformers.modeling_flash_attention_utils",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "accelerate",
    "peft",
    "ray",
    "ray.util.scheduling_strategies",
    "transfer_queue",
    "datasets",
    "pandas",
    "hydra",
    "aiohttp",
    "fastapi",
    "uvicorn",
    "hypothesis",
    "pytest_asyncio",
)


class Outcomes:
    """A pytest plugin that keeps each test's outcome and the words of its failure."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            marker = item.get_closest_marker("unpatched")
            self.tests[item.name] = {"outcome": "not run", "message": "", "fails_with": marker and marker.args[0]}

    def pytest_runtest_logreport(self, report: Any) -> None:
        test = self.tests[report.nodeid.rsplit("::", 1)[1]]
        if report.when == "call" or report.outcome != "passed":
            crash = getattr(report.longrepr, "reprcrash", None)
            test["outcome"] = report.outcome if report.when == "call" else f"{report.outcome} in {report.when}"
            test["message"] = crash.message if crash else str(report.longrepr or "")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """In the child: the job's files under the job's verl."""
    import pytest

    os.environ.update(job["environment"])
    os.chdir(job["root"])
    sys.path.insert(0, job["verl"])
    outcomes = Outcomes()
    status = pytest.main([*job["files"], "-q", "-p", "no:cacheprovider", *job["options"]], plugins=[outcomes])
    found = getattr(sys.modules.get("verl"), "__file__", None)
    return {"status": int(status), "verl": found, "tests": outcomes.tests}


def fork(job: dict[str, Any]) -> dict[str, Any]:
    """In this process: forks, waits, and gives the child's result; what it printed is in the job's log."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            result = run(job)
        except BaseException:
            result = {"status": -1, "verl": None, "tests": {}, "error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"status": -1, "verl": None, "tests": {}, "error": "the child died"}


def import_beforehand() -> None:
    """Imports what verl stands on."""
    from verl_steer.torchvision_ops import ensure_torchvision

    ensure_torchvision()  # a torchvision that was built for another torch breaks the import of transformers
    for name in BEFOREHAND:
        importlib.import_module(name)


def main() -> None:
    """Imports, then serves until stdin ends."""
    # Whatever a module prints while it is imported must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_beforehand()
    if threading.active_count() > 1:
        raise RuntimeError(f"a thread was started, so this process must not fork: {threading.enumerate()}")
    if "verl" in sys.modules:
        raise RuntimeError("verl was imported before there was a copy to import it from")
    for line in sys.stdin:
        answers.write(json.dumps(fork(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
