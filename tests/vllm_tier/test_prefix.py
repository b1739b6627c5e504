"""The prefix cache of a real vLLM over a whole dialogue, with Qwen's vocabulary. Run by `bash tests/run.sh --vllm`."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import prefix
import pytest
from harness import picture
from qwen_bpe import qwen_bpe
from tiny_model import build_tiny_vlm
from vllm_server import MAX_TOKENS, VllmServer, serve

pytestmark = pytest.mark.vllm

SIDE = 28 * 30
IMAGE_TOKENS = 30 * 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A model of random weights that reads Qwen's tokens: what it says does not matter here."""
    folder = tmp_path_factory.mktemp("reader")
    model = build_tiny_vlm(folder / "model", vocabulary=qwen_bpe(), max_pixels=SIDE * SIDE, positions=MAX_TOKENS)
    with serve(model, "reader", folder / "server.log", prefix.BLOCK) as running:
        yield running


def test_each_turn_computes_its_exchange_and_little_else_and_a_fifth_of_what_the_other_layout_would(
    server: VllmServer,
) -> None:
    tokenizer = qwen_bpe()

    @functools.cache
    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    image = picture(SIDE)
    warm, calls = prefix.dialogue(picture(SIDE, seed=1), "a street", turns=1), prefix.dialogue(image, "a kitchen")
    computed = {}
    for name in ("ours", "other"):
        prompts = [getattr(call, name) for call in [*warm, *calls]]
        tokens = [prefix.tokens_of(messages, encode, IMAGE_TOKENS) for messages in prompts]
        found = list(prefix.measured(server.base_url, server.model, prompts))[1:]
        assert [f.prompt for f in found] == [len(t) for t in tokens[1:]], "the server reads the prompts as counted"
        assert [f.computed for f in found] == prefix.uncovered(tokens[1:], tokens[:1], prefix.BLOCK)
        computed[name] = [f.computed for f in found][1:]
    exchange = [sum(len(encode(text)) for text in call.exchange) for call in calls][1:]
    beyond = [a - b for a, b in zip(computed["ours"], exchange, strict=True)]
    print(f"computed {computed}; beyond the newest exchange {beyond}")
    assert max(beyond) <= prefix.GOAL_EXTRA
    assert sum(computed["ours"]) <= prefix.GOAL_SHARE * sum(computed["other"])
