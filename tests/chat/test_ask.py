"""One repair retry, and what becomes of it."""

import pytest

from verl_steer.chat.ask import ask
from verl_steer.chat.client import ChatClient
from verl_steer.chat.outcome import Outcome
from verl_steer.chat.structured import StrictReply
from verl_steer.testing.server import Completion, Wire, error, serve

MESSAGES = [{"role": "user", "content": "how many?"}]


class Count(StrictReply):
    """A reply."""

    number: int


RIGHT, BROKEN = Completion('{"number": 3}', "stop", None, 10, 2), Completion("three, I think", "stop", None, 10, 4)


async def answers(*given, deadline_s=5.0):
    left = list(given)
    with serve(lambda body: left.pop(0) if len(left) > 1 else left[0]) as server:
        client = ChatClient("tutor", [server.base_url], max_concurrency=1, attempts=1)
        found = await ask(client, MESSAGES, Count, key="k", deadline_s=deadline_s, max_tokens=8)
        await client.aclose()
    return found, server.requests


async def test_a_right_reply_needs_no_repair():
    found, _ = await answers(RIGHT)
    assert (found.value, found.chat.outcome, found.chat.calls) == (Count(number=3), Outcome.OK, 1)


async def test_a_repair_costs_both_calls_and_asks_with_the_same_seed():
    found, requests = await answers(BROKEN, RIGHT)
    assert (found.value, found.chat.outcome) == (Count(number=3), Outcome.OK)
    assert (found.chat.calls, found.chat.prompt_tokens, found.chat.completion_tokens) == (2, 20, 6)
    assert requests[0]["seed"] == requests[1]["seed"]
    assert requests[1]["messages"][1] == {"role": "assistant", "content": "three, I think"}


async def test_there_is_one_repair_only():
    found, requests = await answers(BROKEN)
    assert (found.value, found.chat.outcome, len(requests)) == (None, Outcome.UNPARSEABLE, 2)
    assert "nothing else" in found.chat.detail


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (error(500, "gone"), Outcome.FAILED),
        (Completion("", "content_filter"), Outcome.BLOCKED),
        (Completion("", refusal="no"), Outcome.REFUSED),
        (Wire(delay_s=30), Outcome.TIMEOUT),
    ],
)
async def test_a_repair_that_ends_otherwise_ends_so_and_tells_of_the_first_reply(second, outcome):
    found, _ = await answers(BROKEN, second, deadline_s=0.6 if outcome is Outcome.TIMEOUT else 5.0)
    assert (found.value, found.chat.outcome, found.chat.calls) == (None, outcome, 2)
    assert "the reply before was not accepted" in found.chat.detail


async def test_an_empty_or_hostile_reply_is_shown_back_safely():
    _, requests = await answers(Completion(""), RIGHT)
    assert requests[1]["messages"][1]["content"] == "(empty)"
    _, requests = await answers(Completion("<|im_end|>" + "x" * 9000), RIGHT)
    shown = requests[1]["messages"][1]["content"]
    assert shown.startswith("(im_end)") and len(shown) <= 2000


async def ask_for_odd(*given):
    left = list(given)
    with serve(lambda body: left.pop(0)) as server:
        client = ChatClient("tutor", [server.base_url], max_concurrency=1, attempts=1)
        found = await ask(
            client, MESSAGES, Count, key="k", deadline_s=5.0, max_tokens=8,
            flaw=lambda reply: None if reply.number % 2 else "number: it is even",
        )  # fmt: skip
        await client.aclose()
    return found, server.requests


EVEN = Completion('{"number": 4}')


async def test_a_flawed_reply_is_asked_to_mend_and_stands_if_it_does_not():
    found, requests = await ask_for_odd(EVEN, RIGHT)
    assert (found.value, found.chat.calls) == (Count(number=3), 2)
    assert "number: it is even" in requests[1]["messages"][-1]["content"]
    found, _ = await ask_for_odd(EVEN, Completion('{"number": 6}'))
    assert (found.value, found.chat.outcome) == (Count(number=6), Outcome.OK)


@pytest.mark.parametrize(
    ("second", "repair"),
    [
        (BROKEN, Outcome.OK),
        (error(500, "gone"), Outcome.FAILED),
        (Completion("", "content_filter"), Outcome.BLOCKED),
    ],
)
async def test_a_flawed_reply_is_not_lost_with_its_repair(second, repair):
    found, _ = await ask_for_odd(EVEN, second)
    assert (found.value, found.chat.outcome, found.chat.calls) == (Count(number=4), Outcome.OK, 2)
    assert "it is even; not mended" in found.chat.detail and found.repair is repair


async def test_a_repaired_reply_may_have_a_flaw():
    found, requests = await ask_for_odd(BROKEN, EVEN)
    assert (found.value, len(requests)) == (Count(number=4), 2)
