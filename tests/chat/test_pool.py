"""The pool: one connection a request, used again, closed in time, lost with a failure."""

import asyncio
import time

import httpx
import pytest

from verl_steer.chat.pool import Pool, proxy_for
from verl_steer.testing.server import Completion, Wire, serve

BODY = {"model": "tutor", "messages": []}


def opened(keepalive_s=4.0):
    pool = Pool(httpx.create_ssl_context(), keepalive_s)
    return pool, httpx.AsyncClient(transport=pool, timeout=10)


async def post(client, server):
    return (await client.post(f"{server.base_url}/chat/completions", json=BODY)).status_code


async def test_a_connection_is_used_again_and_parallel_requests_get_their_own():
    async def slowly(body):
        await asyncio.sleep(0.1)
        return Completion("x")

    pool, client = opened()
    with serve(slowly) as server:
        for _ in range(3):
            assert await post(client, server) == 200
        assert pool.connections == 1
        assert await asyncio.gather(*(post(client, server) for _ in range(5))) == [200] * 5
        assert pool.connections == 5 and server.peak == 5
        await client.aclose()
    assert pool.connections == 0


async def test_connections_left_from_a_peak_are_closed_when_they_are_too_old():
    pool, client = opened(keepalive_s=0.3)
    with serve(lambda body: Completion("x")) as server:
        await asyncio.gather(*(post(client, server) for _ in range(4)))
        kept = pool.connections
        await asyncio.sleep(0.4)
        await post(client, server)
        assert kept > 1 and pool.connections == 1
        await client.aclose()


async def test_a_failed_or_cancelled_request_takes_its_connection_with_it():
    answers = iter([Wire(cut="before"), Wire(delay_s=5.0), Completion("x")])
    pool, client = opened()
    with serve(lambda body: next(answers)) as server:
        with pytest.raises(httpx.TransportError):
            await post(client, server)
        assert pool.connections == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await post(client, server)
        assert pool.connections == 0
        assert await post(client, server) == 200
        await client.aclose()


async def test_a_body_that_is_not_read_to_its_end_spoils_no_later_request():
    answers = iter([Wire(b"x" * 10_000, chunk_delay_s=0.01), Completion("x")])
    pool, client = opened()
    with serve(lambda body: next(answers)) as server:
        async with client.stream("POST", f"{server.base_url}/chat/completions", json=BODY) as response:
            async for _ in response.aiter_raw():
                break
        assert await post(client, server) == 200
        assert pool.connections == 1
        await client.aclose()


async def test_a_caller_cancelled_while_its_response_closes_takes_the_connection_with_it(monkeypatch):
    """Kept, it would count as taken inside its transport, and whoever got it next would wait until the deadline."""
    pool, client = opened()
    with serve(lambda body: Completion("x")) as server:
        assert await post(client, server) == 200 and pool.connections == 1
        body_of = pool.handle_async_request

        async def cancelled_at_its_end(request):
            response = await body_of(request)

            async def aclose() -> None:
                raise asyncio.CancelledError

            monkeypatch.setattr(response.stream._body, "aclose", aclose)
            return response

        with monkeypatch.context() as once:
            once.setattr(pool, "handle_async_request", cancelled_at_its_end)
            with pytest.raises(asyncio.CancelledError):
                await post(client, server)
        assert pool.connections == 0
        assert await post(client, server) == 200
        await client.aclose()


async def test_closing_while_a_response_is_open_leaves_nothing():
    pool, client = opened()
    with serve(lambda body: Wire(b"x" * 1000, chunk_delay_s=0.05)) as server:
        async with client.stream("POST", f"{server.base_url}/chat/completions", json=BODY):
            await pool.aclose()
    assert pool.connections == 0


async def test_a_request_costs_no_more_beside_two_hundred_idle_connections():
    async def waiting(body):
        await asyncio.sleep(0.5 if body["messages"] else 0)
        return Completion("x")

    async def cost(client, server):
        start = time.thread_time()
        for _ in range(30):
            await post(client, server)
        return time.thread_time() - start

    pool, client = opened(keepalive_s=60)
    with serve(waiting) as server:
        url, busy = f"{server.base_url}/chat/completions", {"model": "tutor", "messages": [{"role": "user"}]}
        await post(client, server)
        alone = await cost(client, server)
        await asyncio.gather(*(client.post(url, json=busy) for _ in range(200)))
        assert pool.connections >= 200
        # httpx's own pool needs 2.6 times as much here, and it grows with the square.
        assert await cost(client, server) < 1.8 * alone
        await client.aclose()


def test_proxies_come_from_the_environment(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    url = httpx.URL("https://tutor.example/v1")
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    assert proxy_for(url) == "http://proxy.example:3128"
    assert proxy_for(httpx.URL("http://tutor.example/v1")) is None
    monkeypatch.setenv("no_proxy", "tutor.example")
    assert proxy_for(url) is None
