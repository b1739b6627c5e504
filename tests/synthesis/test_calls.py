"""How a step of a row ends where its answer cannot be used."""

from types import SimpleNamespace

import pytest

from verl_steer.chat.ask import Answer
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.dialogue import UserTurn
from verl_steer.synthesis import calls
from verl_steer.synthesis.calls import Calls, StepFailed


@pytest.mark.parametrize(
    ("repair", "transient"), [(Outcome.TIMEOUT, True), (Outcome.FAILED, True), (Outcome.OK, False), (None, False)]
)
async def test_a_flaw_that_no_repair_was_given_for_may_be_mended_another_day(monkeypatch, repair, transient):
    """So `--retry-failed` asks again, and the journal with what was paid for is kept."""

    async def ask(*args, **kwargs):
        return Answer("a script of the wrong length", ChatResult(Outcome.OK, text="{}"), repair)

    monkeypatch.setattr(calls, "ask", ask)
    monkeypatch.setattr(calls, "render", lambda fill: [])
    endpoint = SimpleNamespace(timeout_s=1.0, max_tokens=1, temperature=0.0)
    config = SimpleNamespace(seed=0)
    cast = SimpleNamespace(config=config, fence_key=b"key", endpoints={"generator": endpoint})
    row = Calls(cast, {"generator": None}, "row")
    with pytest.raises(StepFailed, match="unusable: too short") as failed:
        await row.ask("generator", "script", None, str, flaw=lambda value: "too short")
    assert failed.value.transient is transient


class _Says:
    """A model that says one thing."""

    def __init__(self, text):
        self.text = text

    async def complete(self, messages, **call):
        return ChatResult(Outcome.OK, text=self.text, finish_reason="stop")


def _row(text, limit=100):
    endpoint = SimpleNamespace(timeout_s=1.0, max_tokens=9, temperature=0.0)
    config = SimpleNamespace(seed=0, max_reply_chars=limit)
    cast = SimpleNamespace(config=config, fence_key=b"key", endpoints={"blue": endpoint}, guidelines="")
    return Calls(cast, {"blue": _Says(text)}, "row")


@pytest.mark.parametrize("text", ["word " * 21, "x" * 101, "-" * 3000])
async def test_a_reply_that_is_too_long_is_not_shortened_into_one_that_nobody_gave(text):
    with pytest.raises(StepFailed, match="more than 100 characters"):
        await _row(text).say("blue", "blue/1", (), UserTurn("a question"))


@pytest.mark.parametrize("text", ["word " * 20, "\u200b" * 3000 + "word"])
async def test_a_reply_up_to_the_limit_stays_as_it_is(text):
    assert await _row(text).say("blue", "blue/1", (), UserTurn("a question")) == text.replace("\u200b", "").strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>They want <b>it</b>.\nNo.</think>\n\nI will not say.", "I will not say."),
        ("They want it.</think>I will not say.", "I will not say."),
        ("<thinking>They want it.</thinking>\nI will not say.", "I will not say."),
        ("I close a tag, <think>so</think>, in the middle.", "I close a tag, (think)so(/think), in the middle."),
    ],
)
async def test_what_a_model_thinks_first_is_not_what_it_says(text, said):
    assert await _row(text).say("blue", "blue/1", (), UserTurn("a question")) == said


async def test_thinking_alone_is_no_reply():
    with pytest.raises(StepFailed, match="the text is empty"):
        await _row("<think>They want it.</think>").say("blue", "blue/1", (), UserTurn("a question"))
