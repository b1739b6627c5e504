"""What a row's rollouts share, and what they must not."""

import asyncio

import pytest

pytest.importorskip("verl")
from tiny_model import build_tiny_vlm
from verl.utils.tokenizer import hf_processor, hf_tokenizer
from verl.utils.tokenizer.continuous_token import (
    Gemma4VLContinuousTokenBuilder,
    GptOssContinuousTokenBuilder,
    QwenVLContinuousTokenBuilder,
)
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from verl_steer.plugin.opening import Once
from verl_steer.plugin.tokens import history_free, remember_standins


async def test_work_is_done_once_for_everyone_who_asks_before_and_after_it_is_done():
    made = []

    async def make():
        made.append(1)
        await asyncio.sleep(0.01)
        return object()

    once = Once()
    first, second = await asyncio.gather(once.get("a", make), once.get("a", make))
    assert first is second is await once.get("a", make) and made == [1]
    assert await once.get("b", make) is not first


async def test_a_failure_reaches_everyone():
    async def fail():
        raise ValueError("bad row")

    once = Once()
    found = await asyncio.gather(*(once.get("a", fail) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in found] == ["bad row"] * 3


async def test_one_rollout_that_gives_up_does_not_take_the_work_from_its_siblings():
    async def make():
        await asyncio.sleep(0.05)
        return "done"

    once = Once()
    first = asyncio.create_task(once.get("a", make))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await once.get("a", make) == "done"


async def test_a_gate_lets_rows_through_in_their_order():
    started, gate = [], asyncio.Semaphore(1)

    async def make(number):
        started.append(number)
        await asyncio.sleep(0.01)
        assert started[-1] == number, "the next one has begun before this one was done"
        return number

    rows = [Once(gate) for _ in range(4)]
    await asyncio.gather(*(row.get("opening", lambda n=n: make(n)) for n, row in enumerate(rows)))
    assert started == [0, 1, 2, 3]


def test_only_builders_whose_user_turns_look_at_nothing_before_them_share_tokens():
    def bare(kind):
        return object.__new__(kind)

    assert history_free(bare(QwenVLContinuousTokenBuilder))
    assert not history_free(bare(Gemma4VLContinuousTokenBuilder))
    assert not history_free(bare(GptOssContinuousTokenBuilder))


def test_what_stands_in_for_the_history_is_rendered_once_and_the_tokens_are_verls(tmp_path):
    path = str(build_tiny_vlm(tmp_path / "tiny"))
    tokenizer, processor = hf_tokenizer(path), hf_processor(path)
    messages = [{"role": "user", "content": text} for text in ("one", "another one", "")]

    def builder():
        return create_continuous_token_builder(tokenizer, hf_model_type="qwen2_5_vl", processor=processor)

    plain = [builder().tokenize_context_incremental_messages([], [m]) for m in messages]
    rendered = []
    for message, want in zip(messages, plain, strict=True):
        mine = builder()
        render = mine._render_tokens
        mine._render_tokens = lambda *args, render=render, **kwargs: rendered.append(1) or render(*args, **kwargs)
        remember_standins(mine)
        assert mine.tokenize_context_incremental_messages([], [message]) == want
    assert len(rendered) == 1 + len(messages)
