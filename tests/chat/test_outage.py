"""All servers down: calls wait, the log says so, no outcome is invented, and after a set time they raise."""

import asyncio
import logging
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from verl_steer.chat import endpoints, outage
from verl_steer.chat.client import ChatClient
from verl_steer.chat.deadline import Deadline
from verl_steer.chat.outage import ModelOutage
from verl_steer.chat.outcome import Outcome
from verl_steer.testing.server import Completion, Wire, error, serve

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(outage, "MAX_PAUSE_S", 0.1)
    monkeypatch.setattr(outage, "FIRST_REPORT_S", 0.1)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def call(chat, key, deadline_s=0.3, **more):
    return chat.complete(MESSAGES, key=str(key), deadline_s=deadline_s, max_tokens=1, **more)


def client(*urls, outage_s, **more):
    return ChatClient(
        "tutor", urls, **({"max_concurrency": 4, "attempts": 2, "backoff_s": 0.01} | more), outage_s=outage_s
    )


@contextmanager
def gate(answer=None):
    """A server that can be shut and opened: shut, it takes connections and cuts them, or answers `answer`."""
    state = {"open": True}

    def handler(body):
        return Completion("hi") if state["open"] else (answer or Wire(cut="before"))

    with serve(handler) as server:
        yield server, state


async def test_a_server_that_comes_up_late_costs_no_call_its_answer(caplog):
    caplog.set_level(logging.WARNING)
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    chat = client(url, outage_s=30)
    calls = [asyncio.create_task(call(chat, i)) for i in range(10)]
    await asyncio.sleep(0.8)
    assert not any(c.done() for c in calls), "they wait, though their own deadline of 0.3 s is long past"
    import uvicorn

    async def app(scope, receive, send):
        body = b'{"choices": [{"message": {"content": "hi"}}]}'
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        found = await asyncio.gather(*calls)
    finally:
        server.should_exit = True
        thread.join(10)
        await chat.aclose()
    assert [f.outcome for f in found] == [Outcome.OK] * 10
    assert all(f.waited_s > 0.7 and f.latency_s - f.waited_s < 0.3 for f in found)
    says = [r.message for r in caplog.records if r.name == outage.__name__]
    assert sum("no endpoint serves (no connection to" in m for m in says) == 1, "once, not once a call"
    assert "waiting for at most 30 s" in says[0] and "serves again" in says[-1]
    assert 1 <= sum("still no endpoint serves" in m for m in says) <= 4, "at growing intervals"


async def test_after_the_set_time_every_waiting_call_raises_and_none_has_an_outcome():
    chat = client(f"http://127.0.0.1:{free_port()}/v1", outage_s=0.5)
    started = time.perf_counter()
    found = await asyncio.gather(*(call(chat, i) for i in range(8)), return_exceptions=True)
    await chat.aclose()
    assert all(isinstance(f, ModelOutage) and "no connection" in str(f) for f in found)
    assert 0.5 <= time.perf_counter() - started < 3


async def test_without_an_outage_time_an_unreachable_server_is_a_failed_call():
    chat = client(f"http://127.0.0.1:{free_port()}/v1", outage_s=0)
    found = await call(chat, 1)
    await chat.aclose()
    assert found.outcome is Outcome.FAILED


async def test_the_dialogues_clock_stands_still_in_an_outage():
    chat = client(f"http://127.0.0.1:{free_port()}/v1", outage_s=0.6)
    async with Deadline(0.3) as dialogue:
        with pytest.raises(ModelOutage):
            await call(chat, 1, within=dialogue)
        assert dialogue.left() > 0.1
    await chat.aclose()


async def test_one_of_two_servers_down_is_no_outage(caplog):
    with gate() as (server, _):
        chat = client(f"http://127.0.0.1:{free_port()}/v1", server.base_url, outage_s=0.2)
        found = [await call(chat, i, 5.0) for i in range(6)]
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK} and "no endpoint" not in caplog.text


@pytest.mark.parametrize(
    "answer", [error(502, "bad gateway"), error(503, "no backend"), error(500, "dead"), Wire(cut="before")]
)
async def test_a_server_that_answers_nobody_for_long_is_down_too(monkeypatch, answer):
    monkeypatch.setattr(endpoints, "SICK_FAILURES", 4)
    monkeypatch.setattr(endpoints, "SICK_S", 0.2)
    with gate(answer) as (server, state):
        chat = client(server.base_url, outage_s=30, attempts=40)
        assert (await call(chat, "before")).outcome is Outcome.OK
        state["open"] = False
        calls = [asyncio.create_task(call(chat, i, 1.0)) for i in range(6)]
        await asyncio.sleep(1.6)
        waiting = [c for c in calls if not c.done()]
        assert len(waiting) == 6, "past their own deadline: the outage's wait is not counted"
        state["open"] = True
        assert {f.outcome for f in await asyncio.gather(*calls)} == {Outcome.OK}
        await chat.aclose()


@pytest.mark.parametrize("status", [401, 402, 404])
async def test_a_key_or_model_that_is_not_accepted_any_more_is_an_outage_at_once(status):
    with gate(error(status, "not for you")) as (server, state):
        chat = client(server.base_url, outage_s=1.5)
        assert (await call(chat, "before")).outcome is Outcome.OK
        state["open"] = False
        found = await asyncio.gather(*(call(chat, i, 5.0) for i in range(40)), return_exceptions=True)
        lost = [f for f in found if not isinstance(f, ModelOutage)]
        # Ten requests told so; whose last attempt that was has an outcome, every other call waits.
        assert len(lost) <= 10 and {f.outcome for f in lost} <= {Outcome.FAILED}
        assert f"answered {status}: " in str(next(f for f in found if isinstance(f, ModelOutage)))
        await chat.aclose()


async def test_ten_quick_faults_after_a_pause_are_no_outage_until_they_last(monkeypatch):
    """A tutor is asked nothing while the student is updated; what it says first after that may be "not now"."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    several = endpoints.Endpoints(["http://one"], 4)
    [one] = several

    def faults_and_outage(at):
        with monkeypatch.context() as clock:
            clock.setattr(loop, "time", lambda: at)
            for _ in range(endpoints.SICK_FAILURES):
                several.mark_unanswered(one, True, "busy")
            return several.all_down()

    several.mark_answered(one)
    assert not faults_and_outage(now + 600)
    assert not faults_and_outage(now + 599 + endpoints.SICK_S)
    assert faults_and_outage(now + 600 + endpoints.SICK_S)
    several.mark_answered(one)
    assert not faults_and_outage(now + 601 + endpoints.SICK_S), "an answer begins it anew"


async def test_one_404_after_many_other_faults_is_no_lock_out():
    several = endpoints.Endpoints(["http://one"], 4)
    [one] = several
    for told in ([False] * 20, [True], [False], [True] * (endpoints.SICK_FAILURES - 1)):
        for locked_out in told:
            several.mark_unanswered(one, True, "trouble", locked_out)
    assert not several.all_down()
    several.mark_unanswered(one, True, "trouble", True)
    assert several.all_down()
    several.mark_answered(one)
    assert not several.all_down()


async def test_one_request_that_is_always_told_404_stops_nobody_else():
    def handler(body):
        return error(404, "no such page") if "poison" in str(body["messages"]) else Completion("hi")

    with serve(handler) as server:
        chat = client(server.base_url, outage_s=30)
        poisoned = chat.complete([{"role": "user", "content": "poison"}], key="p", deadline_s=5.0, max_tokens=1)
        lost, *found = await asyncio.gather(poisoned, *(call(chat, i, 5.0) for i in range(40)))
        await chat.aclose()
    assert lost.outcome is Outcome.FAILED and {f.outcome for f in found} == {Outcome.OK}


async def test_in_an_outage_one_request_at_a_time_asks_whether_it_is_over(monkeypatch):
    monkeypatch.setattr(endpoints, "SICK_FAILURES", 4)
    monkeypatch.setattr(endpoints, "SICK_S", 0.1)
    with gate(error(503, "no backend")) as (server, state):
        state["open"] = False
        chat = client(server.base_url, outage_s=1.5, max_concurrency=64)
        calls = [asyncio.create_task(call(chat, i, 1.0)) for i in range(50)]
        await asyncio.sleep(0.7)
        before = len(server.requests)
        await asyncio.sleep(0.5)
        assert len(server.requests) - before <= 8
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(f, ModelOutage) for f in found)
        await chat.aclose()


async def test_a_try_that_hangs_ends_and_is_followed_by_another(monkeypatch):
    monkeypatch.setattr(endpoints, "SICK_FAILURES", 2)
    monkeypatch.setattr(endpoints, "SICK_S", 0.1)
    with gate(Wire(delay_s=60)) as (server, state):
        state["open"] = False
        chat = client(server.base_url, outage_s=20, attempt_timeout_s=0.2)
        calls = [asyncio.create_task(call(chat, i, 0.9)) for i in range(4)]
        await asyncio.sleep(1.5)
        state["open"] = True
        found = await asyncio.gather(*calls)
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK}
