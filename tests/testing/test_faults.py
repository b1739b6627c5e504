"""The fault server does what its plan says, whatever the order of the requests."""

import asyncio
import json
import socket
import time

import httpx
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from verl_steer.testing.faults import CURABLE, DECLINED, MALFORMED, Fault, FaultPlan, faulty, spoil, strike
from verl_steer.testing.server import Completion, Wire, serve

RIGHT = Completion(json.dumps({"reason": "r", "safety": 10, "usefulness": 9, "faithfulness": 8}))
BODIES = [{"model": "tutor", "messages": [{"role": "user", "content": str(i)}]} for i in range(400)]


def test_every_fault_belongs_to_one_family():
    assert sorted([*CURABLE, *DECLINED, *MALFORMED]) == sorted(Fault)


def test_the_plan_depends_on_seed_and_body_and_not_on_order():
    def draws(seed, bodies):
        plan = FaultPlan(seed=seed, rate=0.3)
        return {body["messages"][0]["content"]: plan.draw(body) for body in bodies}

    assert draws(1, BODIES) == draws(1, BODIES[::-1]) != draws(2, BODIES)
    hit = [fault for fault in draws(1, BODIES).values() if fault is not None]
    assert 0.2 * len(BODIES) < len(hit) < 0.4 * len(BODIES)
    assert len(set(hit)) > 20


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_headers(monkeypatch):
    """Or each call would take 40 ms longer than the model that is played."""
    set_on = []

    class Noted(H11Protocol):
        def connection_made(self, transport):
            accepted = transport.get_extra_info("socket")
            set_on.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super().connection_made(transport)

    monkeypatch.setattr("verl_steer.testing.server.H11Protocol", Noted)
    with serve(lambda body: RIGHT) as server:
        httpx.post(f"{server.base_url}/chat/completions", json=BODIES[0]).raise_for_status()
    assert set_on and all(set_on)


def test_tries_bounds_how_often_a_request_is_hit():
    plan = FaultPlan(seed=1, rate=1, faults=[Fault.RESET], tries=2)
    assert [plan.draw(BODIES[0]) for _ in range(4)] == [Fault.RESET, Fault.RESET, None, None]
    assert plan.hits == {Fault.RESET: 2}
    for_ever = FaultPlan(seed=1, rate=1, faults=[Fault.RESET])
    assert [for_ever.draw(BODIES[0]) for _ in range(4)] == [Fault.RESET] * 4


@pytest.mark.parametrize(("rate", "faults"), [(1.5, [Fault.RESET]), (-0.1, [Fault.RESET]), (0.5, [])])
def test_an_impossible_plan_is_refused(rate, faults):
    with pytest.raises(ValueError, match="fault plan"):
        FaultPlan(seed=0, rate=rate, faults=faults)


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_reply_differs_from_the_right_one(fault):
    plan = FaultPlan(seed=0, rate=1)
    spoilt = strike(fault, RIGHT, BODIES[0], plan)
    assert isinstance(spoilt, Completion) and spoilt.text != RIGHT.text
    assert strike(fault, Wire(status=500), BODIES[0], plan) == Wire(status=500)


def test_the_echo_holds_the_prompt_and_the_right_reply():
    text = spoil(Fault.ECHO, RIGHT.text, BODIES[3])
    assert '"3"' in text and text.endswith(RIGHT.text)


def post(server, **settings):
    return httpx.post(
        f"{server.base_url}/chat/completions", json=BODIES[0], **({"timeout": 5, "trust_env": False} | settings)
    )


def one(fault, **settings):
    return serve(faulty(lambda body: RIGHT, FaultPlan(seed=0, rate=1, faults=[fault], **settings)))


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Fault.TOO_MANY, 429), (Fault.SERVER_ERROR, 500), (Fault.BAD_GATEWAY, 502), (Fault.UNAVAILABLE, 503)],
)
def test_status_faults(fault, status):
    with one(fault) as server:
        assert post(server).status_code == status
    with one(Fault.TOO_MANY_RETRY_AFTER) as server:
        assert float(post(server).headers["retry-after"]) > 0


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.RESET_WITHIN])
def test_a_reset_breaks_the_connection(fault):
    with one(fault) as server, pytest.raises(httpx.TransportError):
        post(server)


def test_a_hang_and_a_slow_body_outlast_the_client_but_not_the_server():
    started = time.perf_counter()
    for fault in (Fault.HANG, Fault.SLOW_HEADERS, Fault.SLOW_BODY):
        with one(fault, hang_s=600) as server, pytest.raises(httpx.ReadTimeout):
            post(server, timeout=0.1)
    assert time.perf_counter() - started < 5


def test_slow_headers_arrive_in_the_end():
    with one(Fault.SLOW_HEADERS, hang_s=1) as server:
        assert post(server).json()["choices"][0]["message"]["content"] == RIGHT.text


@pytest.mark.parametrize("fault", [Fault.WRONG_CONTENT, Fault.INVALID_UTF8, Fault.TRUNCATED_BODY])
def test_a_broken_body_is_no_json(fault):
    with one(fault) as server:
        found = post(server)
    assert found.status_code == 200
    with pytest.raises(ValueError):
        json.loads(found.content.decode("utf-8"))


def test_huge_body_and_empty_choices():
    with one(Fault.HUGE_BODY, huge_bytes=3_000_000) as server:
        assert len(post(server).content) > 3_000_000
    with one(Fault.EMPTY_CHOICES) as server:
        assert post(server).json()["choices"] == []


def test_the_server_lists_its_models_wants_its_key_and_reports_a_broken_handler():
    def broken(body):
        raise KeyError("nothing there")

    with serve(broken, models=["a"], api_key="k") as server:
        right = {"authorization": "Bearer k"}
        listed = httpx.get(f"{server.base_url}/models", headers=right, trust_env=False).json()
        assert [m["id"] for m in listed["data"]] == ["a"]
        assert post(server).status_code == 401
        assert post(server, headers=right).status_code == 500
        assert httpx.get(f"{server.base_url}/other", headers=right, trust_env=False).status_code == 404
    with pytest.raises(httpx.ConnectError):
        post(server)


def test_a_client_that_goes_away_before_its_body_is_no_request():
    with serve(lambda body: RIGHT) as server:
        host, port = httpx.URL(server.base_url).host, httpx.URL(server.base_url).port
        with socket.create_connection((host, port)) as line:
            line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert post(server).status_code == 200
    assert server.requests == [BODIES[0]]


async def test_an_async_handler_serves_many_at_once():
    async def slow(body):
        await asyncio.sleep(0.1)
        return RIGHT

    started = time.perf_counter()
    with serve(slow) as server:
        async with httpx.AsyncClient(trust_env=False) as http:
            url = f"{server.base_url}/chat/completions"
            found = await asyncio.gather(*(http.post(url, json=body) for body in BODIES[:20]))
    assert {r.status_code for r in found} == {200}
    assert server.peak > 10 and server.outstanding == 0
    assert time.perf_counter() - started < 1.9
