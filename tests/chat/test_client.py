"""The client against a real server in this process: retries, deadlines, several URLs, secrets."""

import asyncio
import logging
import socket
import time

import pytest

from verl_steer.chat.client import ChatClient, seed_of
from verl_steer.chat.deadline import Deadline
from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.chat.outcome import Outcome
from verl_steer.chat.slots import QueueFullError
from verl_steer.chat.structured import JsonSchema
from verl_steer.chat.wire import retry_after
from verl_steer.testing.server import Completion, Wire, error, serve

MESSAGES = [{"role": "user", "content": "hello"}]
SCHEMA = JsonSchema("reply", {"type": "object"})
KEY = "sk-planted-4f1d9a7c"


def client(*urls, **settings):
    defaults = {"max_concurrency": 8, "backoff_s": 0.002}
    return ChatClient("tutor", urls, **(defaults | settings))


async def complete(chat, deadline_s=5.0, **settings):
    try:
        return await chat.complete(MESSAGES, **({"key": "k", "deadline_s": deadline_s, "max_tokens": 16} | settings))
    finally:
        await chat.aclose()


def sequence(*answers):
    """A handler that gives these answers in order, and the last one for ever."""
    left = list(answers)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_a_completion_comes_back_with_its_cost():
    with serve(lambda body: Completion("hi", "length", None, 12, 3)) as server:
        found = await complete(client(server.base_url), temperature=0.5)
    assert (found.outcome, found.text, found.finish_reason) == (Outcome.OK, "hi", "length")
    assert (found.calls, found.prompt_tokens, found.completion_tokens, found.detail) == (1, 12, 3, "")
    assert found.latency_s > 0
    assert server.requests == [
        {"model": "tutor", "messages": MESSAGES, "temperature": 0.5, "max_tokens": 16, "seed": seed_of("k")}
    ]


@pytest.mark.parametrize("status", [401, 402, 404, 408, 409, 425, 429, 500, 502, 503, 529])
async def test_what_speaks_of_the_server_is_tried_again(status):
    with serve(sequence(error(status, "busy"), error(status, "busy"), Completion("hi"))) as server:
        found = await complete(client(server.base_url))
    assert (found.outcome, found.text, found.calls) == (Outcome.OK, "hi", 3)


@pytest.mark.parametrize("status", [302, 400, 403, 413, 422])
async def test_any_other_status_is_final(status):
    with serve(lambda body: error(status, "no way")) as server:
        found = await complete(client(server.base_url))
    assert (found.outcome, found.calls) == (Outcome.FAILED, 1)
    assert str(status) in found.detail and "no way" in found.detail


@pytest.mark.parametrize(
    "broken",
    [
        Wire(cut="before"),
        Wire(b"{" + b" " * 500 + b"}", cut="within"),
        Wire(b"<html>login</html>", headers={"content-type": "text/html"}),
        Wire(b'{"choices": []}'),
        Wire(b'{"choices": [{"message": null}]}'),
        Wire(b'{"choices": 3}'),
        Wire(b"[]"),
        Wire(b""),
        Wire(b'{"choices": [{"message": {"content": "\xff"}}]}'),
        Wire(b'{"choices": [{"message": {"content": "h'),
        Wire(b"[" * 50_000),
        Wire(b" " * 3000 + b"{}"),
    ],
)
async def test_what_is_no_completion_is_tried_again_and_then_failed(broken):
    with serve(sequence(broken, Completion("hi"))) as server:
        cured = await complete(client(server.base_url, max_reply_bytes=2000))
    assert (cured.outcome, cured.text, cured.calls) == (Outcome.OK, "hi", 2)
    with serve(lambda body: broken) as server:
        lost = await complete(client(server.base_url, max_reply_bytes=2000, attempts=2))
    assert (lost.outcome, lost.text, lost.calls) == (Outcome.FAILED, "", 2)
    assert lost.detail


async def test_a_huge_body_is_not_read_to_its_end():
    with serve(lambda body: Wire(b" " * 64, chunk_delay_s=0.05, headers={"content-length": "1000000"})) as server:
        started = time.perf_counter()
        found = await complete(client(server.base_url, max_reply_bytes=32, attempts=1))
    assert found.outcome is Outcome.FAILED and "more than 32 bytes" in found.detail
    assert time.perf_counter() - started < 2


async def test_retry_after_is_honoured_by_the_call_and_by_all_others():
    with serve(sequence(error(429, "slow down", {"retry-after": "2.5"}), Completion("hi"))) as server:
        chat = client(server.base_url, max_concurrency=1)
        started = time.perf_counter()
        both = [chat.complete(MESSAGES, key=key, deadline_s=2.0, max_tokens=1) for key in ("a", "b")]
        found = await asyncio.gather(*both)
        assert time.perf_counter() - started >= 2.5
        await chat.aclose()
    assert [f.outcome for f in found] == [Outcome.OK] * 2 and sorted(f.calls for f in found) == [1, 2]
    assert all(f.waited_s >= 2.0 for f in found), "the server's pause costs no call its own time"
    with serve(sequence(error(429, "slow down", {"retry-after": "0.4"}), Completion("hi"))) as server:
        alone = await complete(client(server.base_url))
    assert alone.outcome is Outcome.OK and alone.calls == 2 and alone.latency_s >= 0.4


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("-3", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value, low, high):
    assert low <= retry_after(value) <= high


@pytest.mark.parametrize("value", [None, "", "soon", "nan"])
def test_a_retry_after_that_says_nothing_is_none(value):
    assert retry_after(value) is None


async def test_the_deadline_covers_a_hang():
    with serve(lambda body: Wire(delay_s=30)) as server:
        started = time.perf_counter()
        found = await complete(client(server.base_url), deadline_s=0.2)
    assert (found.outcome, found.calls) == (Outcome.TIMEOUT, 1)
    assert found.latency_s >= 0.19 and time.perf_counter() - started < 3


async def test_waiting_for_a_slot_costs_a_call_none_of_its_time():
    with serve(lambda body: Wire(b'{"choices": [{"message": {"content": "hi"}}]}', delay_s=0.5)) as server:
        chat = client(server.base_url, max_concurrency=1)
        calls = [chat.complete(MESSAGES, key=str(i), deadline_s=2.0, max_tokens=1) for i in range(6)]
        found = await asyncio.gather(*calls)
        await chat.aclose()
    assert [f.outcome for f in found] == [Outcome.OK] * 6
    assert max(f.latency_s for f in found) > 2.5 > 2.0 > max(f.latency_s - f.waited_s for f in found)


async def test_waiting_for_a_slot_costs_the_callers_nothing_either():
    """A validation set that starts at once waits in this queue; a slow tutor must not cut its dialogues."""
    with serve(lambda body: Wire(b'{"choices": [{"message": {"content": "hi"}}]}', delay_s=0.5)) as server:
        chat = client(server.base_url, max_concurrency=1)

        async def turn(n: int) -> Outcome:
            async with Deadline(1.5) as dialogue:
                return (await chat.complete(MESSAGES, key=str(n), deadline_s=20, max_tokens=1, within=dialogue)).outcome

        started = time.perf_counter()
        found = await asyncio.gather(*(turn(n) for n in range(6)))
        await chat.aclose()
    assert found == [Outcome.OK] * 6 and time.perf_counter() - started > 2.5


async def test_the_callers_own_deadline_bounds_the_request_itself():
    with serve(lambda body: Wire(delay_s=30)) as server:
        chat = client(server.base_url, max_concurrency=1)
        started = time.perf_counter()
        with pytest.raises(TimeoutError):
            async with Deadline(0.3) as dialogue:
                await chat.complete(MESSAGES, key="a", deadline_s=20, max_tokens=1, within=dialogue)
        assert time.perf_counter() - started < 5
        await chat.aclose()


async def test_a_queue_far_too_long_is_the_callers_error():
    with serve(lambda body: Wire(delay_s=30)) as server:
        chat = client(server.base_url, max_concurrency=1)
        chat._bind_loop()
        chat._dispatcher.slots._max_waiting = 2
        calls = [asyncio.create_task(chat.complete(MESSAGES, key=str(i), deadline_s=1, max_tokens=1)) for i in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFullError, match="start fewer dialogues"):
            await chat.complete(MESSAGES, key="d", deadline_s=1, max_tokens=1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await chat.aclose()


@pytest.mark.parametrize("status", [429, 502, 503, 504, 529])
async def test_not_now_costs_no_attempt_and_ends_with_the_deadline(status):
    with serve(sequence(*[error(status, "not now")] * 7, Completion("hi"))) as server:
        cured = await complete(client(server.base_url, attempts=1))
    assert (cured.outcome, cured.calls) == (Outcome.OK, 8)
    with serve(lambda body: error(status, "not now")) as server:
        lost = await complete(client(server.base_url, attempts=1), deadline_s=0.3)
    assert lost.outcome is Outcome.TIMEOUT and "not now" in lost.detail


async def test_there_is_one_layer_of_retries():
    """What a call says it sent is what the server saw: nothing below or above asks again by itself."""
    with serve(lambda body: error(500, "broken")) as server:
        found = await complete(client(server.base_url, attempts=3))
        assert (found.outcome, found.calls, len(server.requests)) == (Outcome.FAILED, 3, 3)
    with serve(lambda body: Wire(cut="before")) as server:
        found = await complete(client(server.base_url, attempts=3))
        assert (found.outcome, found.calls, len(server.requests)) == (Outcome.FAILED, 3, 3)


async def test_the_deadline_covers_retries_and_tells_what_came_before():
    with serve(lambda body: error(503, "warming up")) as server:
        found = await complete(client(server.base_url, attempts=1000, backoff_s=0.05), deadline_s=2.0)
    assert found.outcome is Outcome.TIMEOUT and "warming up" in found.detail and found.calls >= 2


async def test_a_hang_costs_one_attempt_where_attempts_are_limited():
    with serve(sequence(Wire(delay_s=30), Completion("hi"))) as server:
        found = await complete(client(server.base_url, attempt_timeout_s=0.5))
    assert (found.outcome, found.calls) == (Outcome.OK, 2)


async def test_a_slow_body_is_under_the_attempts_limit_too():
    slow = Wire(b" " * 6400 + b"{}", chunk_delay_s=0.05)
    with serve(sequence(slow, Completion("hi"))) as server:
        found = await complete(client(server.base_url, attempt_timeout_s=0.5))
    assert (found.outcome, found.calls) == (Outcome.OK, 2)


async def test_cancelling_a_call_cancels_it():
    with serve(lambda body: Wire(delay_s=30)) as server:
        chat = client(server.base_url, attempt_timeout_s=10)
        call = asyncio.create_task(chat.complete(MESSAGES, key="k", deadline_s=20, max_tokens=1))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await chat.aclose()


async def test_the_pauses_are_jittered_and_the_same_for_the_same_key(monkeypatch):
    slept = []
    sleep = asyncio.sleep

    async def note(seconds):
        if seconds:  # giving way to others is no pause
            slept.append(seconds)
        await sleep(0)

    async def pauses(key):
        slept.clear()
        await complete(client(server.base_url, attempts=5, backoff_s=1.0), key=key)
        return list(slept)

    with serve(lambda body: Completion("x")) as server:
        pass  # nobody listens there any more
    monkeypatch.setattr("verl_steer.chat.client.asyncio.sleep", note)
    one, same, other = await pauses("a"), await pauses("a"), await pauses("b")
    assert one == same != other
    assert all(0.5 * 2**i <= pause <= 1.5 * 2**i for i, pause in enumerate(one)) and len(one) == 4


async def test_no_more_requests_are_under_way_than_allowed():
    async def slow(body):
        await asyncio.sleep(0.02)
        return Completion("hi")

    with serve(slow) as server:
        chat = client(server.base_url, max_concurrency=3)
        found = await asyncio.gather(
            *(chat.complete(MESSAGES, key=str(i), deadline_s=5, max_tokens=1) for i in range(15))
        )
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK}
    assert server.peak == 3


# -- several URLs -----------------------------------------------------------------------------------


async def test_a_dead_url_costs_no_attempt_and_no_pause():
    with serve(lambda body: Completion("hi")) as server:
        dead = f"http://127.0.0.1:{free_port()}/v1"
        chat = client(dead, server.base_url, attempts=1, backoff_s=30.0)
        found = [await chat.complete(MESSAGES, key=str(i), deadline_s=5, max_tokens=1) for i in range(6)]
        await chat.aclose()
    assert {f.outcome for f in found} == {Outcome.OK}
    assert 7 <= sum(f.calls for f in found) <= 8  # the dead one was met, then left alone for a second at least


async def test_requests_go_to_the_url_with_the_fewest_under_way():
    async def slow(body):
        await asyncio.sleep(0.3)
        return Completion("slow")

    with serve(slow) as one, serve(lambda body: Completion("fast")) as two:
        chat = client(one.base_url, two.base_url)
        stuck = asyncio.create_task(chat.complete(MESSAGES, key="s", deadline_s=5, max_tokens=1))
        await asyncio.sleep(0.05)
        if not one.outstanding:  # the first went to the fast one
            stuck = asyncio.create_task(chat.complete(MESSAGES, key="s", deadline_s=5, max_tokens=1))
            await asyncio.sleep(0.05)
        texts = {(await chat.complete(MESSAGES, key=str(i), deadline_s=5, max_tokens=1)).text for i in range(4)}
        assert texts == {"fast"}
        await stuck
        await chat.aclose()
    assert len(one.requests) == 1


async def test_with_all_urls_down_the_call_fails_after_its_attempts():
    urls = [f"http://127.0.0.1:{free_port()}/v1" for _ in range(2)]
    found = await complete(client(*urls, attempts=3))
    assert found.outcome is Outcome.FAILED and "no connection" in found.detail
    assert 3 <= found.calls <= 4


# -- declined, filtered -----------------------------------------------------------------------------


async def test_a_refusal_and_a_filter_are_final_and_typed():
    with serve(lambda body: Completion("partly", refusal="I will not.")) as server:
        refused = await complete(client(server.base_url))
    assert (refused.outcome, refused.text, refused.detail, refused.calls) == (
        Outcome.REFUSED,
        "partly",
        "I will not.",
        1,
    )
    with serve(lambda body: Completion("", "content_filter")) as server:
        blocked = await complete(client(server.base_url))
    assert (blocked.outcome, blocked.calls) == (Outcome.BLOCKED, 1)
    with serve(lambda body: Wire(b'{"error": {"code": "content_filter", "message": "prompt"}}', 400)) as server:
        prompt = await complete(client(server.base_url))
    assert (prompt.outcome, prompt.calls) == (Outcome.BLOCKED, 1)


async def test_content_in_parts_is_joined():
    parts = b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}'
    with serve(lambda body: Wire(parts)) as server:
        found = await complete(client(server.base_url))
    assert (found.outcome, found.text, found.finish_reason, found.prompt_tokens) == (Outcome.OK, "ab", "", 0)


# -- dialects of structured output ------------------------------------------------------------------


def speaks(*fields):
    """A server that objects to every way of asking for structure but these."""

    def answer(body):
        unknown = {"response_format", "structured_outputs", "guided_json"} & set(body) - set(fields)
        return error(400, f"unknown fields {sorted(unknown)}") if unknown else Completion("hi")

    return answer


@pytest.mark.parametrize(("fields", "tries"), [(["response_format"], 1), (["structured_outputs"], 2), ([], 3)])
async def test_auto_steps_down_once_and_remembers(fields, tries):
    with serve(speaks(*fields)) as server:
        chat = client(server.base_url, attempts=1)
        first = await chat.complete(MESSAGES, key="a", deadline_s=5, max_tokens=1, schema=SCHEMA)
        second = await chat.complete(MESSAGES, key="b", deadline_s=5, max_tokens=1, schema=SCHEMA)
        await chat.aclose()
    assert (first.outcome, first.calls, second.outcome, second.calls) == (Outcome.OK, tries, Outcome.OK, 1)
    assert set(fields) <= set(server.requests[-1])


async def test_a_named_dialect_does_not_step_down():
    with serve(speaks()) as server:
        found = await complete(client(server.base_url, structured_output="response_format"), schema=SCHEMA)
    assert (found.outcome, found.calls) == (Outcome.FAILED, 1)


async def test_a_400_for_another_reason_does_not_turn_structure_off():
    answers = sequence(
        error(400, "response_format and 9999 tokens are too long"), *[error(400, "too long")] * 2, Completion("hi")
    )
    with serve(answers) as server:
        chat = client(server.base_url)
        first = await chat.complete(MESSAGES, key="a", deadline_s=5, max_tokens=1, schema=SCHEMA)
        assert first.outcome is Outcome.FAILED
        await chat.complete(MESSAGES, key="b", deadline_s=5, max_tokens=1, schema=SCHEMA)
        await chat.aclose()
    assert "response_format" in server.requests[2]


# -- secrets and settings ---------------------------------------------------------------------------


async def test_the_key_is_sent_and_appears_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("TUTOR_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    with serve(lambda body: Completion("hi"), api_key=KEY) as server:
        right = client(server.base_url, api_key_env="TUTOR_KEY")
        assert (await complete(right)).outcome is Outcome.OK
    with serve(lambda body: Completion("hi"), api_key="another") as server:  # it quotes the wrong key back
        wrong = client(server.base_url, api_key_env="TUTOR_KEY")
        found = await complete(wrong)
    assert found.outcome is Outcome.FAILED and "wrong key: Bearer ***" in found.detail
    assert KEY not in found.detail + repr(right) + repr(vars(right)) + repr(vars(wrong)) + caplog.text


@pytest.mark.parametrize("value", ["", "  ", "sk-Ü-secret", "sk-line\nbreak"])
async def test_a_missing_or_impossible_key_is_an_error_that_names_the_variable_only(monkeypatch, value):
    monkeypatch.setenv("TUTOR_KEY", value)
    with pytest.raises(ChatConfigError, match="TUTOR_KEY") as raised:
        await complete(client("http://127.0.0.1:9/v1", api_key_env="TUTOR_KEY"))
    assert "sk-" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://user:s3cret@host/v1", "http://host/v1?key=s3cret", "ftp://host", "host:80", "http://host:port", ""),
        *("user:s3cret@host/v1", "https:/user:s3cret@host", "http:user:s3cret@host", "http//user:s3cret@host"),
        *("http://host/v1#s3cret", "http://host:port?key=s3cret", "host:80/v1?key=s3cret"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secret(url):
    with pytest.raises(ChatConfigError) as raised:
        client(url)
    assert "s3cret" not in str(raised.value)


def test_a_client_needs_a_url():
    with pytest.raises(ChatConfigError, match="base URL"):
        client()


async def test_models_tells_what_each_url_offers():
    dead = f"http://127.0.0.1:{free_port()}/v1"
    with serve(lambda body: Completion("hi"), models=["tutor", "judge"]) as server:
        chat = client(server.base_url, dead, f"{server.base_url}/nowhere")
        found = await chat.models()
        await chat.aclose()
    assert found[server.base_url] == ["tutor", "judge"]
    assert "cannot be reached" in found[dead]
    assert found[f"{server.base_url}/nowhere"] == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (error(503, "starting"), "answered 503"),
        (Wire(b"<html>"), "OpenAI-compatible"),
        (Wire(b'{"data": 3}'), "OpenAI-compatible"),
        (Wire(delay_s=30), "did not answer within 0.1 s"),
    ],
)
async def test_models_says_what_is_wrong_with_a_server(answer, says):
    with serve(lambda body: Completion("hi"), models=answer) as server:
        chat = client(server.base_url)
        found = await chat.models(timeout_s=0.1 if answer.delay_s else 5.0)
        await chat.aclose()
    assert says in found[server.base_url]


def test_one_client_serves_one_event_loop_after_another():
    with serve(lambda body: Completion("hi")) as server:
        chat = client(server.base_url)
        for _ in range(2):
            found = asyncio.run(chat.complete(MESSAGES, key="k", deadline_s=5, max_tokens=1))
            assert found.outcome is Outcome.OK
