"""The queue in front of the endpoints, on a clock that the tests turn: nothing here depends on the machine's speed."""

import asyncio

from verl_steer.chat.endpoints import Endpoints
from verl_steer.chat.slots import Slots


class Steps:
    """`loop.time`, moved on by `step` seconds at every reading, as a stalled process sees it."""

    def __init__(self, monkeypatch):
        self.now, self.step = 1000.0, 0.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", self)

    def __call__(self):
        self.now += self.step
        return self.now


async def turns(n=20):
    for _ in range(n):
        await asyncio.sleep(0)


async def test_a_pause_that_ends_between_two_looks_at_the_clock_does_not_strand_the_queue(monkeypatch):
    """With nothing under way no other event comes: whoever is stranded waits until the dialogue is cut."""
    clock = Steps(monkeypatch)
    # The pause ends after the first, the second, … reading: one of them is the last that still sees it.
    for readings in range(8):
        endpoints = Endpoints(["http://one/v1"], max_concurrency=2)
        slots = Slots(endpoints)
        [endpoint] = endpoints
        clock.step = 0.0
        endpoints.hold(endpoint, readings + 0.5)
        clock.step = 1.0
        waiting = asyncio.ensure_future(slots.take())
        await turns()
        assert waiting.done(), f"stranded where the pause ended after {readings} readings of the clock"
        assert waiting.result() is endpoint and endpoint.outstanding == 1
