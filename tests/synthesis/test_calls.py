"""How a step of a row ends where its answer cannot be used."""

from types import SimpleNamespace

import pytest

from verl_steer.chat.ask import Answer
from verl_steer.chat.outcome import ChatResult, Outcome
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
