"""The benchmarks' own arithmetic: bounds, prefixes, growth, draws."""

import math
import statistics

import pytest

pytest.importorskip("verl")
import prefix
import soak
from latency_server import draw
from rollout import lower_bound
from soak import Sample, growth, leaked


def test_the_bound_is_the_largest_of_the_longest_dialogue_and_the_work_of_either_side():
    student = [("a", 1, 1.0, 1.5), ("a", 2, 2.0, 2.0), ("b", 1, 0.5, 0.5)]
    tutor = [("a", 1, 4.0, 4.0), ("b", 1, 9.0, 9.0)]
    bound = lower_bound(student, tutor, slots=2)
    assert (bound.longest_s, bound.student_s, bound.tutor_s) == (9.5, 1.75, 6.5) and bound.seconds == 9.5
    assert lower_bound(student, tutor, slots=1).seconds == 13.0
    assert lower_bound(student, tutor, slots=2, column=3).student_s == 2.0


def test_draws_depend_on_their_key_alone_and_keep_the_mean():
    assert draw(2.0, 0.0, "any") == 2.0
    assert draw(2.0, 0.5, "k") == draw(2.0, 0.5, "k") != draw(2.0, 0.5, "l")
    drawn = [draw(2.0, 0.5, f"{n}") for n in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(2.0, rel=0.05)
    assert statistics.stdev(map(math.log, drawn)) == pytest.approx(0.5, rel=0.05)


def test_uncovered_tokens_are_those_after_the_longest_prefix_of_any_earlier_prompt():
    assert prefix.uncovered([[1, 2, 3], [1, 2, 4, 5], [1, 2, 3, 6], [9]]) == [3, 2, 1, 1]
    assert prefix.uncovered([[1, 2, 3]], earlier=[[1, 2], [7]]) == [1]


def test_a_server_shares_whole_blocks_and_computes_at_least_the_last_token():
    first = list(range(10))
    assert prefix.uncovered([first, [*first, 99]], block=4) == [10, 3]
    assert prefix.uncovered([first[:8], first[:8]], block=4) == [8, 4]


def test_the_other_layout_holds_the_same_parts_in_another_order():
    from harness import picture

    call = prefix.dialogue(picture(28), "a kitchen")[2]
    ours, other = (
        [p for m in messages for p in ([{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"])]
        for messages in (call.ours, call.other)
    )  # fmt: skip
    assert sorted(map(str, ours)) == sorted(map(str, other)) and ours != other
    kinds = [p["type"] if p["type"] == "image_url" else p["text"].lstrip()[:6] for p in other]
    assert kinds[-3:] == ["You ar", "image_url", "# Task"]


def test_a_pictures_tokens_carry_the_picture():
    from harness import picture

    def tokens(seed):
        return prefix.tokens_of(prefix.dialogue(picture(28, seed), "s")[0].ours, lambda text: [text], image_tokens=3)

    one, same, other = tokens(0), tokens(0), tokens(1)
    assert one == same and len(one) == len(other)
    assert len(one) - prefix.shared_prefix(one, other) >= 3


def test_growth_compares_the_end_with_what_came_after_warm_up():
    flat, rising = [100.0] + [200.0] * 20, [100.0 + 10 * n for n in range(31)]
    assert growth(flat) == 1.0
    assert growth(rising) == pytest.approx(385 / 165)
    with pytest.raises(ValueError, match="run longer"):
        growth([1.0, 1.0])


def test_a_leak_is_what_was_not_there_before():
    assert leaked(Sample(1, 5, 1, 7), Sample(9, 9, 1, 8)) == {"sockets": 4, "tasks": 0, "threads": 1}


async def test_a_sample_counts_an_open_socket_and_a_task():
    import asyncio
    import socket

    before = soak.sample()
    task = asyncio.create_task(asyncio.sleep(60))
    with socket.create_server(("127.0.0.1", 0)):
        now = soak.sample()
    task.cancel()
    assert (now.sockets - before.sockets, now.tasks - before.tasks) == (1, 1)
    assert soak.sample().sockets == before.sockets
