"""A build's calls a second over those of a bare loop, and its memory from a thousand to fifty thousand seeds.

    python benchmarks/synthesis.py [--quick] [--peer NAME=PYTHON ...] [--memory]

A mock server answers every role after 50 ms; 512 calls are under way. The bound is one bare loop: 512 coroutines that
send the very calls of the build through `ChatClient`, with no journal, no prompt to fill, no rows and no files. Beside
it stands the same loop over httpx's own client, on fewer calls. Rounds alternate, and each side counts by its best
round: what a busy machine takes away says nothing of the code. `cpu_ms` is the processor time of a call in this
process, which neighbours disturb little. --peer gives the texts of the same prompts to another generation pipeline
(peer_generation.py), start and end of its run included. --memory instead measures the peak of builds of 1,000, 5,000 and 50,000 seeds, a process each; there the replies
come from this process, since half a million requests would measure patience.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from mock_roles import mock_roles, reply, role_in, stats
from own_process import peak_mib

from verl_steer.chat.client import ChatClient
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.data.schemas import SeedRow
from verl_steer.data.splits import LAYOUTS, table
from verl_steer.dialogue import ImageRef, Kind
from verl_steer.synthesis import calls as calls_module
from verl_steer.synthesis.config import SynthConfig
from verl_steer.synthesis.runner import Build

IN_FLIGHT, LATENCY_S, PEER_CALLS = 512, 0.05, 4000


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


def config_for(root: str, turns: int = 2) -> SynthConfig:
    """Every role at the mock server."""
    weights = [float(t == turns) for t in range(2, 11)]
    shared = {"model": "mock", "base_urls": f"{root}/v1", "concurrency": IN_FLIGHT, "timeout_s": 120}
    return SynthConfig.from_mapping(
        {
            "roles": {"all": shared},
            "red_team": {"enabled": False},
            "turns": {"sft": weights, "held": weights},
            "run": {"rows_in_flight": IN_FLIGHT, "shard_rows": 256},
        }
    )


@dataclass(frozen=True)
class Sent:
    """One call of a build."""

    messages: Any
    options: dict[str, Any]


async def workers(calls: Sequence[Sent], send: Callable[[Sent], Coroutine[Any, Any, None]]) -> float:
    """`IN_FLIGHT` coroutines over the calls; calls a second."""
    pending = iter(calls)

    async def worker() -> None:
        for call in pending:
            await send(call)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return len(calls) / (time.perf_counter() - started)


async def bare_httpx(root: str, calls: Sequence[Sent]) -> float:
    """httpx's own client."""
    limits = httpx.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    async with httpx.AsyncClient(limits=limits, timeout=120) as http:

        async def send(call: Sent) -> None:
            body = {"model": "mock", "messages": call.messages, "max_tokens": call.options["max_tokens"]}
            response = await http.post(f"{root}/v1/chat/completions", json=body)
            assert response.json()["choices"]

        return await workers(calls, send)


async def bare_client(root: str, calls: Sequence[Sent]) -> float:
    """Our client, and nothing around it."""
    client = ChatClient("mock", [f"{root}/v1"], max_concurrency=IN_FLIGHT)

    async def send(call: Sent) -> None:
        assert (await client.complete(call.messages, **call.options)).text

    try:
        return await workers(calls, send)
    finally:
        await client.aclose()


def built(root: str, seeds: Path, out: Path) -> float:
    """A whole build; calls a second."""
    before, started = stats(root)["total"], time.perf_counter()
    build = Build(config_for(root), [seeds], out)
    asyncio.run(build.run(build.open()))
    build.shards.close_account()
    return (stats(root)["total"] - before) / (time.perf_counter() - started)


@contextmanager
def instead_of_the_client(other: type[ChatClient]) -> Iterator[None]:
    """Builds made inside use `other`."""
    real, calls_module.ChatClient = calls_module.ChatClient, other  # type: ignore[misc]
    try:
        yield
    finally:
        calls_module.ChatClient = real  # type: ignore[misc]


def calls_of(root: str, folder: Path, picture: bytes) -> list[Sent]:
    """The calls of a small build, as they were sent."""
    found: list[Sent] = []

    class Recorded(ChatClient):
        async def complete(self, messages: Any, **options: Any) -> ChatResult:  # type: ignore[override]
            found.append(Sent(messages, options))
            return await super().complete(messages, **options)

    with instead_of_the_client(Recorded):
        built(root, write_seeds(folder / "few.parquet", 64, picture), folder / "few")
    return found


def peer(name: str, python: str, root: str, calls: Sequence[Sent]) -> float:
    """Calls a second of another pipeline on the texts of the calls."""
    texts = ["\n".join(_texts(call.messages)) for call in calls]
    command = [python, str(Path(__file__).with_name("peer_generation.py")), name, root, str(IN_FLIGHT)]
    found = subprocess.run(command, input=json.dumps(texts), text=True, capture_output=True, check=True)
    rate: float = json.loads(found.stdout.splitlines()[-1])["calls_per_s"]
    return rate


def _texts(messages: Any) -> Iterator[str]:
    for message in messages:
        if isinstance(message["content"], str):
            yield message["content"]
        else:
            yield from (part["text"] for part in message["content"] if part["type"] == "text")


def throughput(seeds: int, rounds: int, peers: Sequence[str], folder: Path) -> dict[str, Any]:
    """Rounds of build and bare client; httpx once, on a tenth of the calls."""
    picture = _picture()
    found: dict[str, list[float]] = {"build": [], "client": [], "httpx": []}
    cpu_ms: dict[str, list[float]] = {"build": [], "client": []}
    with mock_roles(LATENCY_S) as root:
        sample = calls_of(root, folder, picture)
        file = write_seeds(folder / "seeds.parquet", seeds, picture)
        count = seeds * len(sample) // 64
        calls = [sample[n % len(sample)] for n in range(count)]
        for number in range(rounds):
            for name, work in (
                ("build", lambda number=number: built(root, file, folder / f"build{number}")),
                ("client", lambda: asyncio.run(bare_client(root, calls))),
            ):
                began = time.process_time()
                found[name].append(work())
                cpu_ms[name].append(1e3 * (time.process_time() - began) / count)
        found["httpx"].append(asyncio.run(bare_httpx(root, calls[: count // 10])))
        peak = stats(root)["peak"]
        for given in peers:
            name, _, python = given.partition("=")
            found[name] = [peer(name, python, root, calls[:PEER_CALLS])]
    rates = {name: [round(rate, 1) for rate in each] for name, each in found.items()}
    least = {name: round(min(each), 3) for name, each in cpu_ms.items()}
    return {"calls": count, "peak_in_flight": peak, "cpu_ms": least, **rates}


class Instant(ChatClient):
    """Answers at once, in this process."""

    async def complete(self, messages: Any, **options: Any) -> ChatResult:  # type: ignore[override]
        """As the mock server would."""
        await asyncio.sleep(0)
        asked = json.dumps(messages[-1]).encode()
        return ChatResult(Outcome.OK, reply(role_in(asked), asked), "stop", 1, 100, 20)


def _picture() -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise((64, 64), 40).save(out, "JPEG")
    return out.getvalue()


def memory(count: int) -> None:
    """A build of `count` seeds in this process; prints its peak."""
    with tempfile.TemporaryDirectory() as folder, instead_of_the_client(Instant):
        file = write_seeds(Path(folder) / "seeds.parquet", count, _picture())
        started = time.perf_counter()
        build = Build(config_for("http://nobody"), [file], Path(folder) / "out")
        asyncio.run(build.run(build.open()))
        account = build.shards.close_account()
        facts = {
            "seeds": count,
            "peak_mib": round(peak_mib(), 1),
            "answers": account.answers,
            "failed": account.failed,
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(json.dumps(facts))


def main() -> int:
    """Measures and prints; exit status 0 if the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and one round: within a minute")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="distilabel, curator")
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
        facts = throughput(*((512, 1) if given.quick else (1024, 6)), given.peer, Path(folder))
    value, bound = max(facts["build"]), max(facts["client"])
    details = {"latency_s": LATENCY_S, "in_flight": IN_FLIGHT, **facts}
    return _print("synthesis", value, "calls/s", bound, ">= 0.9 of the bare loop", value >= 0.9 * bound, details)


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
