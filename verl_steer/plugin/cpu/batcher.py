"""The thread that owns the engine: requests and commands come in from an event loop, replies go back.

Decoding blocks, an actor's event loop must not. One thread runs the engine; between two decoding
steps it takes in whatever has arrived, so requests that wait together are computed together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from verl_steer.plugin.cpu.batch_engine import BatchEngine
from verl_steer.plugin.cpu.request import Reply, Request

#: Seconds an idle engine waits for company after the first request: a step's requests arrive together.
GATHER_S = 0.004


class Batcher:
    """Runs requests through an engine, as many at once as there are.

    Args:
        engine: Owned by this object's thread from now on.
    """

    def __init__(self, engine: BatchEngine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._waiting: deque[tuple[Callable[[], Request], Future[Reply]]] = deque()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._replies: dict[int, Future[Reply]] = {}
        self._paused = self._rejecting = self._closed = False
        self._thread = threading.Thread(target=self._run, name="hf-rollout", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> BatchEngine:
        """For commands that run between two steps; no other thread may touch it."""
        return self._engine

    def submit(self, prepare: Callable[[], Request]) -> Future[Reply]:
        """Queues a request.

        Args:
            prepare: Makes the request; runs on the engine's thread, because it processes pictures.

        Returns:
            The reply, or what `prepare` or the engine raised.
        """
        future: Future[Reply] = Future()
        with self._wake:
            if self._closed:
                raise RuntimeError("the rollout server is closed")
            if self._rejecting:
                future.set_result(Reply(finish="abort"))
                return future
            self._waiting.append((prepare, future))
            self._wake.notify()
        return future

    def between_steps(self, command: Callable[[], Any]) -> Future[Any]:
        """Runs `command` on the engine's thread, between two decoding steps."""
        future: Future[Any] = Future()
        with self._wake:
            self._commands.append((command, future))
            self._wake.notify()
        return future

    def pause(self, reject: bool) -> Future[int]:
        """Ends every request that is being decoded and admits no other.

        Args:
            reject: End those that wait, and those that come, instead of keeping them for `resume`.

        Returns:
            How many were ended.
        """

        def stop() -> int:
            ended = self._engine.abort()
            self._deliver(ended)
            kept = len(self._waiting)
            while self._rejecting and self._waiting:
                self._waiting.popleft()[1].set_result(Reply(finish="abort"))
            return len(ended) + (kept if self._rejecting else 0)

        with self._wake:
            self._paused, self._rejecting = True, reject
        return self.between_steps(stop)

    def resume(self) -> None:
        """Admits requests again."""
        with self._wake:
            self._paused = self._rejecting = False
            self._wake.notify()

    def close(self) -> None:
        """Stops the thread; requests that are still there end as aborted."""
        self.pause(reject=True)
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(self._has_work)
                if self._closed and not self._commands:
                    return
                idle = not self._engine.active and not self._commands
            if idle:
                with self._wake:
                    self._wake.wait_for(lambda: len(self._waiting) >= self._engine.free, timeout=GATHER_S)
            self._run_commands()
            try:
                self._deliver(self._admit())
                self._deliver(self._engine.step())
            except Exception as error:
                self._fail_all(error)

    def _has_work(self) -> bool:
        return bool(self._commands or self._closed or self._engine.active or (self._waiting and not self._paused))

    def _run_commands(self) -> None:
        while self._commands:
            command, future = self._commands.popleft()
            try:
                future.set_result(command())
            except Exception as error:
                future.set_exception(error)

    def _admit(self) -> list[Request]:
        requests = []
        while not self._paused and self._waiting and len(requests) < self._engine.free:
            prepare, future = self._waiting.popleft()
            try:
                request = prepare()
            except Exception as error:  # the fault of this request alone: its caller hears of it
                future.set_exception(error)
                continue
            self._replies[id(request)] = future
            requests.append(request)
        return self._engine.admit(requests) if requests else []

    def _deliver(self, finished: list[Request]) -> None:
        for request in finished:
            self._replies.pop(id(request)).set_result(request.reply)

    def _fail_all(self, error: Exception) -> None:
        """An error of the engine itself: every request in it is lost, and each caller is told why."""
        self._engine.abort()
        for future in self._replies.values():
            future.set_exception(error)
        self._replies.clear()
