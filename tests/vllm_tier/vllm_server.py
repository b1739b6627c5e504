"""Starts `vllm serve`, waits for it, measures its prefix cache, and stops it whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tiny_tutor import MAX_TOKENS

START_LIMIT_S = 420
DRAIN_LIMIT_S = 60
BLOCK_TOKENS = 32  # the prefix cache counts whole blocks
#: For every vLLM process, a rollout's included.
ENVIRONMENT = {
    # Two servers that each bind themselves to "their" core would share one.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class PrefixCache:
    """Counters of /metrics, in tokens since the server's start.

    Attributes:
        queried: Prompt tokens looked up.
        hit: Of these, tokens whose keys and values were there already.
    """

    queried: int
    hit: int

    def since(self, earlier: PrefixCache) -> PrefixCache:
        """What came after `earlier`."""
        return PrefixCache(self.queried - earlier.queried, self.hit - earlier.hit)


@dataclass(frozen=True)
class VllmServer:
    """A running server.

    Attributes:
        root: http://host:port
        model: Name under which it offers the model.
        folder: The model's folder.
    """

    root: str
    model: str
    folder: Path

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes."""
        return f"{self.root}/v1"

    def prefix_cache(self) -> PrefixCache:
        """The counters now."""
        text = self._metrics()
        queried = self._total(text, "vllm:prefix_cache_queries_total")
        return PrefixCache(queried, self._total(text, "vllm:prefix_cache_hits_total"))

    def answered(self) -> int:
        """Requests that ended by themselves since the start (not those whose client left), once none is under way.

        Raises:
            RuntimeError: Requests are under way for longer than DRAIN_LIMIT_S.
        """
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while time.monotonic() < deadline:
            text = self._metrics()
            if not any(self._total(text, f"vllm:num_requests_{state}") for state in ("running", "waiting")):
                name = "vllm:request_success_total"
                return sum(self._total(text, name, f'finished_reason="{reason}"') for reason in ("stop", "length"))
            time.sleep(0.2)
        raise RuntimeError(f"{self.root} still works on requests after {DRAIN_LIMIT_S} s")

    def _metrics(self) -> str:
        return httpx.get(f"{self.root}/metrics", timeout=30).text

    def _total(self, metrics: str, name: str, label: str = "") -> int:
        lines = [line for line in metrics.splitlines() if line.startswith(name + "{") and label in line]
        if not lines:
            raise LookupError(f"{self.root}/metrics has no {name} {label}".rstrip())
        return round(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


@contextmanager
def serve(folder: Path, model: str, log: Path, block_tokens: int = BLOCK_TOKENS) -> Iterator[VllmServer]:
    """Serves the model in `folder` on a free port of this machine while the context lasts.

    Args:
        folder: A model, tokenizer and processor.
        model: Name under which to offer it.
        log: File for what the server prints.
        block_tokens: Of the prefix cache's blocks; vLLM's CPU build prefers multiples of 32.

    Raises:
        RuntimeError: The server ended, or was not up after START_LIMIT_S; the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        # A prompt prefilled in pieces kills a CPU engine when its request has a seed ("CPU Generator does not use
        # offset", v1/worker/gpu_model_runner.py), and every request of ours has one: whole prompts only.
        *(
            "--no-enable-chunked-prefill",
            "--max-num-batched-tokens",
            str(MAX_TOKENS),
            "--max-model-len",
            str(MAX_TOKENS),
        ),
        *("--max-num-seqs", "16", "--block-size", str(block_tokens), "--enable-prefix-caching"),
        # Without it a model of random weights spends its budget on white space between the keys.
        *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield VllmServer(f"http://127.0.0.1:{port}", model, folder)
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"vllm serve ended with {process.returncode}:\n{_tail(log)}")
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(1)
    raise RuntimeError(f"vllm serve was not up after {START_LIMIT_S} s:\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and its engine process: they are one process group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-4000:]
