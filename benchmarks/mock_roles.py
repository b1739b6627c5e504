"""Every role of a build, answered after a fixed latency by a process of its own: as little server as possible.

A plain asyncio protocol, since a web framework would use up the processor that the client is to be measured on.
GET /stats: the requests so far and the most that were under way at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ROLE = re.compile(rb"Fence tag: \w+\\n(?:Role: (\w+)|Script: )")
_TURNS = re.compile(rb"Write exactly (\d+) user turns")
_SCORES = {"reason": "as planned", "safety": 10, "usefulness": 8, "faithfulness": 9, "strategy": "none"}


def reply(role: str, body: bytes) -> str:
    """What a model in this role would write."""
    found = _TURNS.search(body)
    turns = [
        f"Question {number} about what the picture shows." for number in range(1, int(found[1]) + 1 if found else 1)
    ]
    plan = {"goal": "a step", "technique": "gradual_escalation", "risk": 3}
    match role:
        case "probe":
            return json.dumps({"picture": "", "benign_question": "What is it?", "obfuscated_question": "And that?"})
        case "generator":
            return json.dumps({"turns": turns})
        case "planner":
            return json.dumps({"turns": [{**plan, "question": text} for text in turns]})
        case "forensics":
            return json.dumps({"objects": ["a thing"], "text": "", "context": "a room"})
        case "red":
            return json.dumps({"question": "And what else can be seen there?"})
        case "success":
            return json.dumps({"reason": "as planned", "score": 5})
        case "tutor":
            return json.dumps({**_SCORES, "next_question": None})
        case _:
            return "It shows a room with a table and two chairs. Which of them do you mean?"


def role_in(body: bytes) -> str:
    """The role that a request's prompt names: one model plays them all. "" is one who just talks."""
    found = _ROLE.search(body)
    return "" if found is None else (found[1] or b"tutor").decode()


class Roles(asyncio.Protocol):
    """One connection."""

    latency_s, total, under_way, peak = 0.05, 0, 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._data = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        self._data += data
        if (end := self._data.find(b"\r\n\r\n")) < 0:
            return
        length = _LENGTH.search(self._data, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._data) < whole:
            return
        head, body = bytes(self._data[:end]), bytes(self._data[end + 4 : whole])
        del self._data[:whole]
        if head.startswith(b"GET"):
            return self._send(json.dumps({"total": Roles.total, "peak": Roles.peak}).encode())
        Roles.total, Roles.under_way = Roles.total + 1, Roles.under_way + 1
        Roles.peak = max(Roles.peak, Roles.under_way)
        asyncio.get_running_loop().call_later(self.latency_s, self._answer, body)

    def _answer(self, body: bytes) -> None:
        Roles.under_way -= 1
        message = {"role": "assistant", "content": reply(role_in(body), body)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 20}
        self._send(json.dumps({"model": "mock", "choices": [choice], "usage": usage}).encode())

    def _send(self, body: bytes) -> None:
        if not self._transport.is_closing():
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            self._transport.write(head + body)


@contextmanager
def mock_roles(latency_s: float) -> Iterator[str]:
    """A server process on a free loopback port; yields its root URL."""
    command = [sys.executable, str(Path(__file__)), "--latency", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def stats(root: str) -> dict[str, int]:
    """{"total": requests, "peak": the most under way at once}"""
    found: dict[str, int] = httpx.get(f"{root}/stats").json()
    return found


async def _serve(latency_s: float) -> None:
    Roles.latency_s = latency_s
    server = await asyncio.get_running_loop().create_server(Roles, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.05)
    asyncio.run(_serve(parser.parse_args().latency))
