"""A build's calls a second over those of a bare loop, and its memory from a thousand to fifty thousand seeds.

    python benchmarks/synthesis.py [--quick] [--memory]

A mock server answers every role after 50 ms; 512 calls are under way. The bound is the faster of two bare loops that
post the very bodies that the build sent, with no journal, no prompt, no reading of replies: 512 coroutines over
httpx's own client, and 512 over `ChatClient`. Rounds alternate, so that a busy machine meets all of them. --memory
instead measures the peak of a build of 1,000, 5,000 and 50,000 seeds (one process each, latency 0, small rows).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pyarrow.parquet as pq
from mock_roles import mock_roles, stats

from verl_steer.chat.client import ChatClient
from verl_steer.data.schemas import SeedRow
from verl_steer.data.splits import LAYOUTS, table
from verl_steer.dialogue import ImageRef, Kind
from verl_steer.synthesis import calls as calls_module
from verl_steer.synthesis.config import ROLES, SynthConfig
from verl_steer.synthesis.runner import Build

IN_FLIGHT, LATENCY_S = 512, 0.05


def write_seeds(path: Path, count: int, picture: bytes) -> Path:
    """`count` seeds with one picture each."""
    rows = (
        SeedRow(
            id=f"seed-{n:06d}",
            source="mock",
            kind=Kind.OBFUSCATED,
            question=f"What is number {n}?",
            images=(ImageRef(picture),),
        )
        for n in range(count)
    )
    schema = LAYOUTS["seed"].schema
    with pq.ParquetWriter(path, schema) as writer:
        while chunk := [row for _, row in zip(range(1000), rows, strict=False)]:
            writer.write_table(table(LAYOUTS["seed"], chunk).cast(schema))
    return path


def config_for(root: str, red_team: bool = False, turns: int = 4) -> SynthConfig:
    """Every role at the mock server."""
    weights = [float(t == turns) for t in range(2, 11)]
    shared = {"base_urls": f"{root}/v1", "concurrency": IN_FLIGHT, "timeout_s": 120}
    return SynthConfig.from_mapping(
        {
            "roles": {"all": shared, **{role: {"model": f"mock-{role}"} for role in ROLES}},
            "red_team": {"enabled": red_team},
            "turns": {"sft": weights, "held": weights},
            "run": {"rows_in_flight": IN_FLIGHT, "shard_rows": 256},
        }
    )


async def workers(bodies: list[Any], send: Callable[[Any], Coroutine[Any, Any, None]]) -> float:
    """`IN_FLIGHT` coroutines over the bodies; calls a second."""
    pending = iter(bodies)

    async def worker() -> None:
        for body in pending:
            await send(body)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return len(bodies) / (time.perf_counter() - started)


async def bare_httpx(root: str, bodies: list[dict[str, Any]]) -> float:
    """httpx's own client."""
    limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    async with httpx.AsyncClient(limits=limits, timeout=120) as http:

        async def send(body: dict[str, Any]) -> None:
            response = await http.post(f"{root}/v1/chat/completions", json=body)
            assert response.json()["choices"]

        return await workers(bodies, send)


async def bare_client(root: str, bodies: list[dict[str, Any]]) -> float:
    """Our client, and nothing around it."""
    client = ChatClient("mock-red", [f"{root}/v1"], max_concurrency=IN_FLIGHT)

    async def send(body: dict[str, Any]) -> None:
        found = await client.complete(body["messages"], key="bare", deadline_s=120, max_tokens=body["max_tokens"])
        assert found.text

    try:
        return await workers(bodies, send)
    finally:
        await client.aclose()


def built(root: str, seeds: Path, out: Path) -> float:
    """A whole build; calls a second."""
    before, started = stats(root)["total"], time.perf_counter()
    build = Build(config_for(root), [seeds], out)
    asyncio.run(build.run(build.open()))
    build.shards.close_account()
    return (stats(root)["total"] - before) / (time.perf_counter() - started)


def bodies_of(root: str, folder: Path, picture: bytes) -> list[dict[str, Any]]:
    """The bodies of a small build, as they were sent."""
    found: list[dict[str, Any]] = []

    class Recorded(ChatClient):
        async def complete(self, messages: Any, **call: Any) -> Any:  # type: ignore[override]
            found.append({"model": self.model, "messages": messages, "max_tokens": call["max_tokens"], "seed": 1})
            return await super().complete(messages, **call)

    real, calls_module.ChatClient = calls_module.ChatClient, Recorded  # type: ignore[misc]
    try:
        built(root, write_seeds(folder / "few.parquet", 64, picture), folder / "few")
    finally:
        calls_module.ChatClient = real  # type: ignore[misc]
    return found


def throughput(seeds: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Rounds of build, bare httpx, bare client."""
    picture = _picture()
    found: dict[str, list[float]] = {"build": [], "httpx": [], "client": []}
    with mock_roles(LATENCY_S) as root:
        sample = bodies_of(root, folder, picture)
        file = write_seeds(folder / "seeds.parquet", seeds, picture)
        count = seeds * len(sample) // 64
        bodies = [sample[n % len(sample)] for n in range(count)]
        for number in range(rounds):
            found["build"].append(built(root, file, folder / f"build{number}"))
            found["httpx"].append(asyncio.run(bare_httpx(root, bodies)))
            found["client"].append(asyncio.run(bare_client(root, bodies)))
        peak = stats(root)["peak"]
    return {
        "calls": count,
        "peak_in_flight": peak,
        **{name: [round(x, 1) for x in each] for name, each in found.items()},
    }


def _picture() -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((64, 64), 40).save(out, "JPEG")
    return out.getvalue()


def memory(count: int) -> None:
    """A build of `count` seeds in this process; prints its peak."""
    with tempfile.TemporaryDirectory() as folder, mock_roles(0.0) as root:
        file = write_seeds(Path(folder) / "seeds.parquet", count, _picture())
        started = time.perf_counter()
        config = config_for(root, turns=2)
        build = Build(config, [file], Path(folder) / "out")
        asyncio.run(build.run(build.open()))
        account = build.shards.close_account()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps(
                {
                    "seeds": count,
                    "peak_mib": round(peak, 1),
                    "calls": account.answers,
                    "seconds": round(time.perf_counter() - started, 1),
                    "failed": account.failed,
                }
            )
        )


def main() -> int:
    """Measures and prints; exit status 0 if the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and one round: within a minute")
    parser.add_argument("--memory", action="store_true", help="peak memory over the number of seeds instead")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        memory(given.memory_of)
        return 0
    if given.memory:
        counts = (200, 1000) if given.quick else (1000, 5000, 50_000)
        found = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--memory-of", str(n)], check=True, text=True, capture_output=True
                ).stdout
            )
            for n in counts
        ]
        first, last = found[0]["peak_mib"], found[-1]["peak_mib"]
        return _print(
            "synthesis_memory",
            last,
            "MiB at the most seeds",
            first,
            "<= 1.1 of the fewest seeds",
            last <= 1.1 * first,
            {"builds": found},
        )
    with tempfile.TemporaryDirectory() as folder:
        facts = throughput(*((256, 1) if given.quick else (1024, 3)), Path(folder))
    middle = {name: median(facts[name]) for name in ("build", "httpx", "client")}
    bound = max(middle["httpx"], middle["client"])
    return _print(
        "synthesis",
        middle["build"],
        "calls/s",
        bound,
        ">= 0.9 of the faster bare loop",
        middle["build"] >= 0.9 * bound,
        {"latency_s": LATENCY_S, "in_flight": IN_FLIGHT, **facts},
    )


def _print(name: str, value: float, unit: str, bound: float, goal: str, ok: bool, details: dict[str, Any]) -> int:
    line = {
        "name": name,
        "value": round(value, 1),
        "unit": unit,
        "bound": round(bound, 1),
        "ratio": round(value / bound, 3),
        "goal": goal,
        "ok": ok,
        "details": details,
    }
    print(json.dumps(line))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
