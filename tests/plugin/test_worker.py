"""verl's own worker with our additions: a row's rollouts share their work and get what verl would have computed."""

import asyncio
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")
import harness
import torch
from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.plugin import settings as settings_module
from verl_steer.plugin.settings import settings_for
from verl_steer.plugin.worker import LOOP_ONLY
from verl_steer.roles.tutor import Assessment
from verl_steer.scores import Outcome, TutorScores, Verdict

PICTURE, LATER = harness.picture(56, 1), harness.picture(84, 2)
SCRIPT = Script(
    "seed-1",
    Kind.RED_TEAM,
    (UserTurn("what is this?", (PICTURE,)), UserTurn("and this?", (LATER,)), UserTurn("why?")),
)


class Student:
    """Another reply at every call."""

    def __init__(self):
        self.tokenizer, self.calls = None, 0

    def words(self):
        return self.tokenizer.encode("x" * self.calls, add_special_tokens=False)

    async def generate(self, **_):
        self.calls += 1
        ids = [*self.words(), self.tokenizer.eos_token_id]
        return SimpleNamespace(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields={"min_global_steps": 1})


class Tutor:
    async def assess(self, request):
        return Assessment(Verdict(Outcome.OK, TutorScores(8, 6, 9)))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    student = harness.build_student(tmp_path_factory.mktemp("model"))
    return harness.config_for(student, "steer.tutor.base_urls=[http://127.0.0.1:9/v1]")


@pytest.fixture
def worker(config, monkeypatch):
    with harness.transfer_queue(harness.Sink()) as sink:
        student = Student()
        worker = harness.worker_for(config, student)
        student.tokenizer, worker.sink = worker.tokenizer, sink
        known = settings_for(worker.config)
        settings = settings_module.Settings(known.config, Tutor(), known.fence_key)
        monkeypatch.setitem(settings_module._by_config, id(worker.config), (worker.config, settings))
        yield worker


def counted(monkeypatch, owner, name):
    calls, real = [], getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


def fields_of(sink):
    return [{key: value[0] for key, value in found.items()} for found in sink.fields.values()]


async def test_rollouts_of_a_row_get_the_tensors_that_verls_worker_computes_for_each(worker):
    await harness.play(worker, [harness.prompt_of(SCRIPT, 0, 3)])
    assert not worker.sink.failed and worker.sink.count == 3
    rows = fields_of(worker.sink)
    assert len({len(row["responses"]) for row in rows}) == 3, "the siblings said different things"
    for row in rows:
        pictures = [harness.decoded(PICTURE), harness.decoded(LATER)]
        output = SimpleNamespace(multi_modal_data={"images": pictures}, mm_processor_kwargs={})
        inputs = harness.PlainWorker._compute_multi_modal_inputs(worker, output, row["input_ids"])
        positions = harness.PlainWorker._compute_position_ids(
            worker, row["input_ids"][None], torch.ones_like(row["input_ids"])[None], inputs
        )
        got = row["multi_modal_inputs"]
        got = getattr(got, "data", got)
        assert set(got) == set(inputs)
        assert all(torch.equal(torch.as_tensor(got[key]), torch.as_tensor(inputs[key])) for key in inputs)
        assert torch.equal(row["position_ids"], positions[0])


async def test_pictures_are_processed_and_questions_tokenised_once_a_row(worker, monkeypatch):
    plain = counted(monkeypatch, harness.PlainWorker, "_compute_multi_modal_inputs")
    tokenised = counted(monkeypatch, ContinuousTokenBuilder, "tokenize_context_incremental_messages")
    await harness.play(worker, [harness.prompt_of(SCRIPT, 0, 4)])
    assert (len(plain), len(tokenised)) == (1, 2)


async def test_a_processor_that_says_something_of_the_text_is_asked_for_every_rollout(worker, monkeypatch):
    real = harness.PlainWorker._compute_multi_modal_inputs
    monkeypatch.setattr(
        harness.PlainWorker,
        "_compute_multi_modal_inputs",
        lambda self, output, ids: real(self, output, ids) | {"token_type_ids": ids.clone()},
    )
    await harness.play(worker, [harness.prompt_of(SCRIPT, 0, 3)])
    for row in fields_of(worker.sink):
        got = row["multi_modal_inputs"]
        assert torch.equal(getattr(got, "data", got)["token_type_ids"], row["input_ids"])


async def test_a_placeholder_that_a_student_spells_out_is_no_picture_and_harms_no_sibling(worker, monkeypatch):
    """In ordinary tokens, more often than there are pictures: the processor would look for as many pictures and end in a StopIteration."""
    await harness.play(worker, [harness.prompt_of(SCRIPT, 0, 2)])
    plain = fields_of(worker.sink)[0]["multi_modal_inputs"]
    spelled = [n for part in ("<|image", "_pad|>") * 5 for n in worker.tokenizer.encode(part, add_special_tokens=False)]
    assert "<|image_pad|>" * 5 in worker.tokenizer.decode(spelled, skip_special_tokens=True)
    monkeypatch.setattr(Student, "words", lambda self: spelled[: self.calls * 40])
    worker.sink.fields.clear()
    await asyncio.wait_for(harness.play(worker, [harness.prompt_of(SCRIPT, 1, 2)]), 60)
    assert not worker.sink.failed and len(worker.sink.fields) == 2
    for row in fields_of(worker.sink):
        got, expected = (getattr(inputs, "data", inputs) for inputs in (row["multi_modal_inputs"], plain))
        assert all(torch.equal(torch.as_tensor(got[key]), torch.as_tensor(expected[key])) for key in expected)


async def test_what_ends_in_a_stop_iteration_loses_a_rollout_and_hangs_nothing(worker, monkeypatch):
    def stop(*_):
        raise StopIteration

    monkeypatch.setattr(harness.PlainWorker, "_compute_position_ids", stop)
    await asyncio.wait_for(harness.play(worker, [harness.prompt_of(SCRIPT, 0, 2)]), 60)
    assert worker.sink.failed and not worker.sink.fields


async def test_the_reward_worker_sees_the_same_tensors_and_nothing_is_computed_again(worker, monkeypatch):
    plain = counted(monkeypatch, harness.PlainWorker, "_compute_multi_modal_inputs")
    positions = counted(monkeypatch, harness.PlainWorker, "_compute_position_ids")
    seen = []

    async def score(data):
        seen.append(data.batch["position_ids"].shape)
        return {"reward_score": 1.0, "reward_extra_info": {}}

    worker.reward_loop_worker_handles = [SimpleNamespace(compute_score=SimpleNamespace(remote=score))]
    await harness.play(worker, [harness.prompt_of(SCRIPT, 0, 2)])
    assert not worker.sink.failed and len(seen) == 2
    assert (len(plain), len(positions)) == (1, 2)


async def test_what_only_the_loop_needs_does_not_travel_on(worker):
    await harness.play(worker, [harness.prompt_of(SCRIPT, 0, 1)])
    [row] = fields_of(worker.sink)
    assert not set(LOOP_ONLY) & set(row) and row["uid"].data == "seed-1-1"


async def test_validation_rows_are_marked_for_the_loop(worker):
    where = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": True}
    prompt = harness.prompt_of(SCRIPT, 0, 1)
    await asyncio.gather(worker._run_prompt(prompt, harness.SAMPLING, trajectory=where))
    [row] = fields_of(worker.sink)
    extra = getattr(row["extra_fields"], "data", row["extra_fields"])
    assert extra["steer"]["context"]["validation"] is True and json.dumps(extra["steer"])
