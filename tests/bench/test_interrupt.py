"""Ctrl-C in the middle of a run: exit status 130, no half line, and the same command ends it."""

import json
import os
import signal
import subprocess
import sys
import time

from bench_worlds import bench, expert_model, world_bench
from interrupts import hear_ctrl_c

import verl_steer
from verl_steer.bench import files
from verl_steer.bench.run import JOURNAL
from verl_steer.testing.server import serve


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path):
    import asyncio

    world, out = world_bench(tmp_path / "bench.parquet", pairs=6), tmp_path / "run"
    good = expert_model(6)

    async def slow(body):
        await asyncio.sleep(0.15)
        return good(body)

    with serve(slow, ["expert"]) as server:
        command = ["run", world, "--out", out, "--url", server.base_url, "--model", "expert", "--concurrency", "3"]
        root = os.path.dirname(os.path.dirname(verl_steer.__file__))  # noqa: PTH120
        process = subprocess.Popen(
            [sys.executable, "-m", "verl_steer.cli", "bench", *map(str, command)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
            preexec_fn=hear_ctrl_c,
        )
        until = time.monotonic() + 60
        while len(server.requests) < 12 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
        kept = [json.loads(line) for line in (out / JOURNAL).read_bytes().splitlines()]
        before = len(server.requests)
        assert 0 < len(kept) < before + 1
        assert bench(*command) == 0
        total = sum(d.planned_turns for d in files.read_dialogues(out))
        assert len(server.requests) - before == total - len(kept)
