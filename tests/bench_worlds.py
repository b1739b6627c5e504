"""Small benches and models for the tests of `verl-steer bench`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from interrupts import hear_ctrl_c

import verl_steer
from verl_steer.cli import main
from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.microworld.policies import expert
from verl_steer.microworld.probe import follow, scripts
from verl_steer.testing.server import Completion, Handler


def world_bench(path: Path, pairs: int = 3, seed: int = 0) -> Path:
    """Held-out scripts of the micro-world and their twins, as the prepared world holds them."""
    write_rows((script_to_row(script, n, "probe") for n, script in enumerate(scripts(seed, pairs))), path)
    return path


def expert_model(pairs: int = 3, seed: int = 0) -> Handler:
    """A model that gives the right reply to every scripted dialogue of `world_bench`, told by its questions."""
    replies: dict[tuple[str, ...], str] = {}
    for script in scripts(seed, pairs):
        asked: tuple[str, ...] = (str(script.turns[0].images[0].sha256),)
        for turn, reply in zip(script.turns, follow(script, expert), strict=True):
            asked = (*asked, turn.text)
            replies[asked] = reply

    def handler(body: Any) -> Completion:
        return Completion(replies[(_picture(body["messages"]), *_questions(body["messages"]))])

    return handler


def _questions(messages: list[dict[str, Any]]) -> list[str]:
    found = []
    for message in messages:
        if message["role"] == "user":
            content = message["content"]
            found.append(content if isinstance(content, str) else content[-1]["text"])
    return found


def _picture(messages: list[dict[str, Any]]) -> str:
    import base64
    import hashlib

    url = messages[0]["content"][0]["image_url"]["url"]
    return hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest()


def bench(*arguments: object) -> int:
    """`verl-steer bench …`."""
    return main(["bench", *map(str, arguments)])


def stopped(*arguments: object, when: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Starts `verl-steer bench …` as a process of its own, presses Ctrl-C once `when()`, and sees it stop cleanly."""
    process = subprocess.Popen(
        [sys.executable, "-m", "verl_steer.cli", "bench", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(verl_steer.__file__).parents[1])},
        preexec_fn=hear_ctrl_c,
    )
    try:
        until = time.monotonic() + limit_s
        while process.poll() is None and not when() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said, said


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI application on a free loopback port, in a thread; yields its base URL."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as verl_steer/testing/server.py says
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(20)
