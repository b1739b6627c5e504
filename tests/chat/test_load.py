"""Limits that adapt, queues, deadlines that stand still: the client under load."""

import asyncio
import random
import time

import pytest

from verl_steer.chat.client import ChatClient
from verl_steer.chat.deadline import Deadline
from verl_steer.chat.limits import AdaptiveLimit, share_of
from verl_steer.chat.outcome import Outcome
from verl_steer.testing.server import Completion, error, serve

MESSAGES = [{"role": "user", "content": "hello"}]


# -- the limit --------------------------------------------------------------------------------------


def test_the_limit_halves_once_a_round_and_grows_by_one_a_round():
    limit = AdaptiveLimit(64)
    assert limit.now == 64
    for _ in range(64):  # all that were under way are told off; they were sent before the first cut
        limit.shrink(sent_at=0.0, now=1.0, under_way=64)
    assert limit.now == 32
    limit.shrink(sent_at=1.5, now=2.0, under_way=32)
    assert limit.now == 16
    for _ in range(17):  # about a round of successes
        limit.grow(under_way=limit.now)
    assert limit.now == 17


def test_the_limit_shrinks_from_what_was_under_way_and_never_below_1_or_above_its_ceiling():
    limit = AdaptiveLimit(100)
    limit.shrink(0.0, 1.0, under_way=10)
    assert limit.now == 5
    for n in range(2, 20):
        limit.shrink(float(n), float(n), under_way=1)
    assert limit.now == 1
    for _ in range(100_000):
        limit.grow(under_way=limit.now)
    assert limit.now == 100


def test_a_limit_that_is_not_reached_teaches_nothing():
    limit = AdaptiveLimit(100)
    limit.shrink(0.0, 1.0, under_way=20)
    for _ in range(1000):
        limit.grow(under_way=3)
    assert limit.now == 10


@pytest.mark.parametrize(("total", "workers"), [(256, 8), (7, 3), (64, 5), (1, 1), (10, 10)])
def test_the_shares_of_all_workers_sum_to_the_jobs_limit(total, workers):
    shares = [share_of(total, workers, i) for i in range(workers)]
    assert sum(shares) == total and max(shares) - min(shares) <= 1
    assert workers * share_of(total, workers) <= total, "without numbers, nobody gets the remainder"


def test_every_worker_may_make_one_call():
    assert [share_of(3, 5, i) for i in range(5)] == [1] * 5


# -- a server with a capacity -----------------------------------------------------------------------


class Busy:
    """A server that takes `capacity` requests at once and refuses the rest."""

    def __init__(self, capacity, service_s=0.03, status=429):
        self.capacity, self.service_s, self.status = capacity, service_s, status
        self.inside = self.refused = 0

    async def __call__(self, body):
        if self.inside >= self.capacity:
            self.refused += 1
            return error(self.status, "too many requests")
        self.inside += 1
        try:
            await asyncio.sleep(self.service_s)
        finally:
            self.inside -= 1
        return Completion("hi")


@pytest.mark.parametrize("status", [429, 503])
async def test_an_overloaded_server_costs_no_call_its_answer_and_is_soon_left_in_peace(status):
    busy = Busy(4, status=status)
    with serve(busy) as server:
        chat = ChatClient("tutor", [server.base_url], max_concurrency=64, attempts=1, backoff_s=0.02)
        found = await asyncio.gather(
            *(chat.complete(MESSAGES, key=str(i), deadline_s=20, max_tokens=1) for i in range(300))
        )
        limit = next(iter(chat._endpoints)).limit.now
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK}
    assert limit <= 12, "the limit found the server's capacity, or near it"
    assert busy.refused < 300, "less than one refusal a call"


async def test_a_slow_neighbour_gets_less_and_the_fast_one_more():
    slow, fast = Busy(2), Busy(16, service_s=0.01)
    with serve(slow) as one, serve(fast) as two:
        chat = ChatClient("tutor", [one.base_url, two.base_url], max_concurrency=32, backoff_s=0.01)
        found = await asyncio.gather(
            *(chat.complete(MESSAGES, key=str(i), deadline_s=20, max_tokens=1) for i in range(200))
        )
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK}
    served = [len(one.requests) - slow.refused, len(two.requests) - fast.refused]
    assert served[1] > 2 * served[0] > 0


async def test_a_server_on_hold_leaves_its_share_to_the_others():
    told = []

    def first_says_wait(body):
        told.append(1)
        return error(429, "later", {"retry-after": "30"})

    with serve(first_says_wait) as one, serve(lambda body: Completion("hi")) as two:
        chat = ChatClient("tutor", [one.base_url, two.base_url], max_concurrency=4, backoff_s=0.002)
        started = time.perf_counter()
        found = [await chat.complete(MESSAGES, key=str(i), deadline_s=5, max_tokens=1) for i in range(8)]
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK} and len(told) == 1
    assert time.perf_counter() - started < 5


async def test_a_server_that_fails_at_once_does_not_draw_all_requests():
    async def slow(body):
        await asyncio.sleep(0.03)
        return Completion("hi")

    with serve(lambda body: error(500, "engine is dead")) as dead, serve(slow) as alive:
        chat = ChatClient("tutor", [dead.base_url, alive.base_url], max_concurrency=8, attempts=4, backoff_s=0.05)
        found = await asyncio.gather(
            *(chat.complete(MESSAGES, key=str(i), deadline_s=60, max_tokens=1) for i in range(100))
        )
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK}
    assert len(dead.requests) < 40


async def test_first_come_first_served():
    order = []

    async def note(body):
        order.append(body["messages"][0]["content"])
        await asyncio.sleep(0.01)
        return Completion("hi")

    with serve(note) as server:
        chat = ChatClient("tutor", [server.base_url], max_concurrency=1)
        await asyncio.gather(
            *(chat.complete([{"role": "user", "content": i}], key="k", deadline_s=5, max_tokens=1) for i in range(12))
        )
        await chat.aclose()
    assert order == list(range(12))


async def test_cancelled_calls_leave_the_queue_and_lose_no_slot():
    chance, under_way = random.Random(3), []

    async def slow(body):
        # By the client's count: the server may not have noticed yet that a caller has gone.
        under_way.append(sum(e.outstanding for e in chat._endpoints))
        await asyncio.sleep(0.01)
        return Completion("hi")

    with serve(slow) as server:
        chat = ChatClient("tutor", [server.base_url], max_concurrency=3)
        calls = [
            asyncio.create_task(chat.complete(MESSAGES, key=str(i), deadline_s=30, max_tokens=1)) for i in range(80)
        ]
        for call in chance.sample(calls, 40):
            await asyncio.sleep(0.002)
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {f.outcome for f in found if not isinstance(f, BaseException)} == {Outcome.OK}
        assert sum(e.outstanding for e in chat._endpoints) == 0 and not chat._dispatcher.slots._waiting
        again = await asyncio.gather(
            *(chat.complete(MESSAGES, key=str(i), deadline_s=30, max_tokens=1) for i in range(9))
        )
        assert [f.outcome for f in again] == [Outcome.OK] * 9
        await chat.aclose()
    assert max(under_way) <= 3


# -- deadlines --------------------------------------------------------------------------------------


async def test_a_paused_deadline_does_not_end_and_goes_on_with_what_was_left():
    started = time.perf_counter()
    with pytest.raises(TimeoutError):
        async with Deadline(0.15) as deadline:
            with deadline.paused():
                await asyncio.sleep(0.3)
                assert 0.1 < deadline.left() <= 0.15
            async with Deadline(5, within=deadline) as inner:
                assert inner.left() > 4
                await asyncio.sleep(5)
    assert 0.4 < time.perf_counter() - started < 2


async def test_a_deadline_that_has_come_cannot_be_put_off():
    with pytest.raises(TimeoutError):
        async with Deadline(0.01) as deadline:
            try:
                await asyncio.sleep(5)
            finally:
                with deadline.paused():
                    pass


async def test_a_pause_may_stop_the_callers_clock_too():
    async def inner(outer, stop_it):
        async with Deadline(0.1, within=outer) as mine:
            with mine.paused(outer=stop_it), mine.paused():
                await asyncio.sleep(0.25)

    async with Deadline(0.2) as outer:
        await inner(outer, True)
        assert outer.left() > 0.1
    with pytest.raises(TimeoutError):
        async with Deadline(0.2) as outer:
            await inner(outer, False)


async def test_a_deadline_shared_for_a_while_passes_its_outer_pauses_on():
    asked = Deadline(1.0)
    async with Deadline(1.0) as top, Deadline(1.0, within=top) as joined:

        def stand():
            return [d._pauses for d in (joined, top)]

        with asked.shared_with(joined):
            with asked.paused():
                assert stand() == [0, 0]
            with asked.paused(outer=True), asked.paused(outer=True):
                assert stand() == [2, 2]
            assert stand() == [0, 0]
        with asked.paused(outer=True):
            assert stand() == [0, 0]
            with asked.shared_with(joined):
                assert stand() == [1, 1]
            assert stand() == [0, 0]
            with asked.shared_with(joined):
                left = joined.left()
                await asyncio.sleep(0.05)
                assert joined.left() == left
        assert joined.left() <= left
