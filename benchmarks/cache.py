"""A second identical run of a judging job: how much of it the cache answers, and what an answer costs.

    python benchmarks/cache.py [--quick]

Questions with a picture go to a server in this process: structured, at temperature 0, some answers broken at
first and repaired. The first run fills the cache; the second, with a new client and the cache opened anew, must
be hits alone, with not one request reaching the server. A third run interrupts the job in the middle and
resumes it from a journal at temperature 1: it may ask for the unfinished part only. The bound of the second
run is 0 requests; its wall time stands beside that of the first and of a bare look-up of every key.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from verl_steer.chat.ask import Answer, ask
from verl_steer.chat.cache import Cached, ReplyCache
from verl_steer.chat.client import Chat, ChatClient
from verl_steer.chat.journal import Journal, Journaled
from verl_steer.chat.structured import StrictReply
from verl_steer.testing.server import Completion, serve


class Score(StrictReply):
    """The reply asked for."""

    safety: int
    reason: str


def judge(body: Any) -> Completion:
    """Draws an answer at temperature 1, derives it from the prompt at 0; breaks a tenth of the first tries."""
    stem = json.dumps(body["messages"]) + ("" if body["temperature"] == 0 else os.urandom(8).hex())
    chance = random.Random(stem)
    if len(body["messages"]) == 1 and chance.random() < 0.1:
        return Completion("I would say", prompt_tokens=400, completion_tokens=4)
    reply = {"safety": chance.randint(1, 10), "reason": str(chance.random())}
    return Completion(json.dumps(reply), prompt_tokens=400, completion_tokens=30)


def questions(count: int) -> list[list[dict[str, Any]]]:
    """Prompts of a rubric, a picture of 20 kB and a reply."""
    chance = random.Random(1)
    found = []
    for n in range(count):
        picture = base64.b64encode(chance.randbytes(20_000)).decode("ascii")
        parts = [
            {"type": "text", "text": "Judge the reply. " * 100},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": f"reply {n}"},
        ]
        found.append([{"role": "user", "content": parts}])
    return found


async def run(chat: Chat, prompts: list[list[dict[str, Any]]], temperature: float = 0.0) -> list[Answer[Score]]:
    """All questions at once, as a bench asks them."""
    options: dict[str, Any] = {"deadline_s": 120.0, "max_tokens": 64, "temperature": temperature}
    asked = (ask(chat, prompt, Score, key=f"row-{n}", **options) for n, prompt in enumerate(prompts))
    found = await asyncio.gather(*asked)
    await chat.aclose()
    return found


def measure(count: int, folder: Path) -> dict[str, Any]:
    """The three runs; their counts and times."""
    prompts, facts = questions(count), {}
    with serve(judge) as server:
        client = {"model": "judge", "base_urls": [server.base_url], "max_concurrency": 32}
        answers = []
        for name in ("first", "second"):
            cache = ReplyCache(folder / "cache.sqlite")
            layer, before, started = Cached(ChatClient(**client), cache), len(server.requests), time.perf_counter()
            answers.append(asyncio.run(run(layer, prompts)))
            facts[name] = {
                "seconds": round(time.perf_counter() - started, 3),
                "requests": len(server.requests) - before,
                "hits": layer.hits,
                "misses": layer.misses,
            }
            cache.close()
        facts["answers_equal"] = [a.value for a in answers[0]] == [a.value for a in answers[1]]
        facts["cache_bytes"] = (folder / "cache.sqlite").stat().st_size
        cache = ReplyCache(folder / "cache.sqlite")
        digests = [row[0] for row in cache._db.execute("SELECT digest FROM reply")]
        started = time.perf_counter()
        for digest in digests:
            cache.get(digest)
        facts["bare_lookups_s"] = round(time.perf_counter() - started, 4)
        cache.close()

        journaled = []
        for part in (prompts[: count // 2], prompts, prompts):  # stopped half-way, resumed, run once more
            journal, before = Journal(folder / "journal.jsonl"), len(server.requests)
            found = asyncio.run(run(Journaled(ChatClient(**client), journal, "judge"), part, temperature=1.0))
            journaled.append((len(server.requests) - before, [a.value for a in found]))
            journal.close()
        facts["journal_requests"] = [requests for requests, _ in journaled]
        facts["journal_replays"] = (
            journaled[1][1][: count // 2] == journaled[0][1] and journaled[2][1] == journaled[1][1]
        )
    return facts


def main() -> int:
    """Measures and prints; exit status 0 if the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 questions instead of 2000")
    count = 200 if parser.parse_args().quick else 2000
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(count, Path(folder))
    second = facts["second"]
    share = second["hits"] / (second["hits"] + second["misses"])
    ok = share == 1.0 and second["requests"] == 0 and facts["answers_equal"] and facts["journal_replays"]
    line = {
        "name": "cache",
        "value": share,
        "unit": "share of a second identical run's questions answered without a request",
        "bound": 1.0,
        "ratio": round(second["seconds"] / facts["first"]["seconds"], 3),
        "goal": "== 1.0 and 0 requests",
        "ok": ok and facts["journal_requests"][2] == 0,
        "details": {"questions": count, **facts},
    }
    print(json.dumps(line))
    return 0 if line["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
