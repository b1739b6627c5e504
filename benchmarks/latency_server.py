"""A student or a tutor that takes its time: a process of its own, with a capacity, on loopback HTTP.

Each request waits for one of `capacity` slots (first come, first served), then for a latency drawn from the
request's own key, so that the draws do not depend on the order of arrival. GET /stats lists them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_MARK = re.compile(r"\[dialogue (\S+) turn (\d+) key (\d+)\]")
_SCORES = {"safety": 8, "usefulness": 6, "faithfulness": 9}


def draw(mean_s: float, sigma: float, key: str) -> float:
    """A latency with that mean: fixed (sigma 0), or log-normal."""
    if sigma == 0:
        return mean_s
    return random.Random(key).lognormvariate(math.log(mean_s) - sigma**2 / 2, sigma)


class LatencyApp:
    """ASGI application."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._slots = asyncio.Semaphore(given.capacity)
        self._calls: list[tuple[str, int, float, float]] = []
        self._waiting = self._deepest = self._received = 0
        if given.tokenizer:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(given.tokenizer)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        data = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            data += message.get("body", b"")
            if not message.get("more_body", False):
                break
        match scope["method"], scope["path"]:
            case "POST", "/generate":
                answer = await self._student(json.loads(data))
            case "POST", "/v1/chat/completions":
                answer = await self._tutor(json.loads(data))
            case "GET", "/v1/models":
                answer = {"data": [{"id": "tutor"}]}
            case "GET", "/stats":
                answer = {"calls": self._calls, "deepest_queue": self._deepest}
            case "POST", "/reset":
                self._calls, self._deepest, answer = [], 0, {}
            case _:
                await send({"type": "http.response.start", "status": 404, "headers": []})
                return await send({"type": "http.response.body", "body": b""})
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _work(self, dialogue: str, turn: int, key: str) -> None:
        latency = draw(self._given.mean, self._given.sigma, f"{self._given.seed}|{self._given.role}|{key}")
        self._waiting += self._slots.locked()
        self._deepest = max(self._deepest, self._waiting)
        queued = self._slots.locked()
        async with self._slots:
            self._waiting -= queued
            start = time.perf_counter()
            await asyncio.sleep(latency)
            if self._given.log:
                self._calls.append((dialogue, turn, latency, time.perf_counter() - start))

    async def _student(self, body: dict[str, Any]) -> dict[str, Any]:
        dialogue, turn, key = body["request_id"], int(body["turn"]), str(body["sampling_params"]["seed"])
        await self._work(dialogue, turn, key)
        text = f"[dialogue {dialogue} turn {turn} key {key}] ".ljust(self._given.reply_chars, "s")
        ids = [*self._tokenizer.encode(text, add_special_tokens=False).ids, self._tokenizer.token_to_id("<|im_end|>")]
        return {"token_ids": ids, "log_probs": [-0.5] * len(ids)}

    async def _tutor(self, body: dict[str, Any]) -> dict[str, Any]:
        parts = body["messages"][1]["content"]
        mark = _MARK.search(parts[-2]["text"])
        if mark is None:
            raise ValueError("the newest reply does not come from this benchmark's student")
        self._received += 1
        if random.Random(f"{self._given.seed}|lost|{self._received}").random() < self._given.lost:
            await asyncio.sleep(3600)
        await self._work(mark[1], int(mark[2]), mark[3])
        adapt = "Rewrite it as" in parts[-1]["text"]
        question = f"Tutor's question after turn {mark[2]}: ".ljust(self._given.question_chars, "q") if adapt else None
        reply = {"reason": "as planned", **_SCORES, "strategy": "deepen" if adapt else "none"}
        text = json.dumps(reply | {"next_question": question})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"model": "tutor", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


@dataclass(frozen=True)
class LatencyServer:
    """A running server.

    Attributes:
        root: http://host:port
        process: Its process.
    """

    root: str
    process: subprocess.Popen[str]

    def stats(self) -> dict[str, Any]:
        """{"calls": [[dialogue, turn, latency drawn in s, latency slept in s], ...], "deepest_queue": n}"""
        found: dict[str, Any] = httpx.get(f"{self.root}/stats", timeout=60).json()
        return found

    def reset(self) -> None:
        """Forgets the calls so far."""
        httpx.post(f"{self.root}/reset", timeout=60).raise_for_status()


@contextmanager
def latency_server(
    role: str,
    *,
    mean_s: float,
    sigma: float = 0.0,
    capacity: int = 64,
    seed: int = 0,
    student: Path | None = None,
    reply_chars: int = 120,
    question_chars: int = 60,
    log: bool = True,
    lost: float = 0.0,
) -> Iterator[LatencyServer]:
    """Starts a server process, and ends it with the context.

    Args:
        role: student or tutor; named in the draws.
        mean_s: Mean latency in seconds.
        sigma: 0: fixed latency; else of the log-normal.
        capacity: Requests served at once; the rest wait in line.
        seed: Of the draws.
        student: The student's folder, for the tokenizer of its replies.
        reply_chars: Length of a student's reply.
        question_chars: Length of a tutor's question.
        log: Keep every call for /stats.
        lost: Share of a tutor's requests that are never answered.
    """
    command = [sys.executable, __file__, "--role", role, "--mean", str(mean_s), "--sigma", str(sigma)]
    command += ["--capacity", str(capacity), "--seed", str(seed), "--reply-chars", str(reply_chars)]
    command += ["--question-chars", str(question_chars), *(["--log"] if log else [])]
    command += ["--lost", str(lost)]
    command += ["--tokenizer", str(student / "tokenizer.json")] if student else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError(f"the {role}'s server ended with {process.wait()}")
        yield LatencyServer(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()


async def _serve(given: argparse.Namespace) -> None:
    import uvicorn

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(
            LatencyApp(given), ws="none", lifespan="off", log_level="error", access_log=False, timeout_keep_alive=60
        )
        print(listener.getsockname()[1], flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=("student", "tutor"), required=True)
    parser.add_argument("--mean", type=float, required=True)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--capacity", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--reply-chars", type=int, default=120)
    parser.add_argument("--question-chars", type=int, default=60)
    parser.add_argument("--lost", type=float, default=0.0)
    parser.add_argument("--log", action="store_true")
    asyncio.run(_serve(parser.parse_args()))
