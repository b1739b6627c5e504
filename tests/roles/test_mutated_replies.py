"""The benchmark's mutated replies, a few of them; and its oracle finds the faults of a lax reader."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from verl_steer.roles.question import question_flaw
from verl_steer.roles.tutor_reply import TutorReply
from verl_steer.testing.mutations import KINDS, mutations

PATH = Path(__file__).parents[2] / "benchmarks" / "replies.py"


@pytest.fixture(scope="module")
def replies():
    spec = importlib.util.spec_from_file_location("benchmark_replies", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_none_crashes_and_none_that_breaks_schema_or_lock_is_accepted(replies):
    tally = replies.read_many(3000, seed=7)
    assert tally.ok, (tally.crashes, tally.broken_accepted, tally.right_refused, tally.read_differently)
    assert 200 < tally.accepted < 1500  # neither all fatal nor all harmless
    assert set(tally.by_kind) >= {"keys", "spaces", "fence", "string", "number"}


async def test_over_http_a_score_comes_only_of_a_right_reply(replies):
    pytest.importorskip("uvicorn")
    outcomes, wrong = await replies.over_http(40, seed=8)
    assert not wrong and set(outcomes) == {"ok", "unparseable"}


def test_mutations_are_the_same_for_the_same_seed_and_of_every_kind(replies):
    given = list(mutations(replies.valid_replies(), 3, 400))
    assert given == list(mutations(replies.valid_replies(), 3, 400))
    assert given != list(mutations(replies.valid_replies(), 4, 400))
    assert {name for kinds, _ in given for name in kinds.split("+")} == set(KINDS)


class Lax(BaseModel):
    """A reply read as pydantic reads by default."""

    reason: str
    safety: int
    usefulness: int
    faithfulness: int
    strategy: str
    next_question: str | None


def test_the_oracle_finds_what_a_lax_reader_lets_in_and_what_makes_it_crash(replies, monkeypatch):
    monkeypatch.setattr(replies, "_as_training_reads", lambda text: Lax(**json.loads(text)))
    tally = replies.read_many(600, seed=7)
    assert not tally.ok and tally.broken_accepted and tally.crashes


def test_the_oracle_finds_what_is_read_differently_and_what_is_refused_for_nothing(replies, monkeypatch):
    strict = replies._as_training_reads
    monkeypatch.setattr(replies, "_as_training_reads", lambda text: strict(text).model_copy(update={"safety": 7}))
    assert replies.read_many(300, seed=7).read_differently

    def refuse(text):
        raise replies.ReplyError("no")

    monkeypatch.setattr(replies, "_as_training_reads", refuse)
    assert replies.read_many(300, seed=7).right_refused


GOOD = {"reason": "r", "safety": 8, "usefulness": 5, "faithfulness": 9, "strategy": "none", "next_question": None}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (json.dumps(GOOD), True),
        (f"\t```json\n{json.dumps(GOOD, indent=2)}\n``` ", True),
        (json.dumps(GOOD).replace("safety", "\\u0073afety"), True),
        (json.dumps(GOOD | {"reason": "😀"}), True),  # written as a pair of escapes
        (json.dumps(GOOD | {"usefulness": 9}), False),
        (json.dumps(GOOD | {"safety": 8.0}), False),
        (json.dumps(GOOD).replace("8", "08"), False),
        (json.dumps(GOOD)[:-1] + ', "safety": 8}', False),
        ("\u00a0" + json.dumps(GOOD), False),
        (json.dumps(GOOD).replace('"r"', '"\\ud800"'), False),
        (json.dumps(GOOD).replace('"r"', '"a\nb"'), False),
    ],
)
def test_reader_and_oracle_agree_on_what_is_right(replies, text, right):
    assert (replies.acceptable(text) is not None) == right
    tally = replies.Tally()
    tally.note("by hand", text)
    assert tally.ok and tally.accepted == right


def test_a_question_without_fault_is_left_alone():
    assert question_flaw(None, 10, "tag") is None
    assert question_flaw("why [1] <b>not</b>?", 20, "abcdefghij") is None
    assert TutorReply(**GOOD).scores.safety == 8
