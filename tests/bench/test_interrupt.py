"""Ctrl-C in the middle of a run: exit status 130, no half line, and the same command ends it."""

import asyncio
import json

from bench_worlds import bench, expert_model, stopped, world_bench

from verl_steer.bench import files
from verl_steer.bench.run import JOURNAL
from verl_steer.testing.server import serve


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path):
    world, out = world_bench(tmp_path / "bench.parquet", pairs=6), tmp_path / "run"
    good = expert_model(6)

    async def slow(body):
        await asyncio.sleep(0.15)
        return good(body)

    with serve(slow, ["expert"]) as server:
        command = ["run", world, "--out", out, "--url", server.base_url, "--model", "expert", "--concurrency", "3"]
        stopped(*command, when=lambda: len(server.requests) >= 12)
        kept = [json.loads(line) for line in (out / JOURNAL).read_bytes().splitlines()]
        before = len(server.requests)
        assert 0 < len(kept) < before + 1
        assert bench(*command) == 0
        total = sum(d.planned_turns for d in files.read_dialogues(out))
        assert len(server.requests) - before == total - len(kept)
