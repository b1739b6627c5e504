"""The course of a dialogue, with a scripted student and a scripted tutor: tokens, masks, cuts, outcomes."""

import asyncio
import dataclasses
import io
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")
from omegaconf import OmegaConf
from PIL import Image
from tiny_model import build_tiny_vlm
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.utils.tokenizer import hf_processor, hf_tokenizer

from verl_steer.chat.outcome import ChatResult
from verl_steer.config import SteerConfig
from verl_steer.data.rows import script_to_row
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.plugin import settings as settings_module
from verl_steer.plugin import tokens
from verl_steer.plugin.agent_loop import SteerAgentLoop
from verl_steer.plugin.dataset import SteerDataset
from verl_steer.plugin.opening import Once
from verl_steer.plugin.settings import Settings
from verl_steer.plugin.turns import turn_ends
from verl_steer.records import dialogue_from_dict
from verl_steer.roles.tutor import Assessment
from verl_steer.scores import Outcome, TutorScores, Verdict
from verl_steer.yoke import Yoke

GOOD, BREACH = TutorScores(10, 10, 10), TutorScores(1, 1, 1)


def picture(colour: str) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(buffer, format="PNG")
    return ImageRef(buffer.getvalue())


SCRIPT = Script(
    "seed-7",
    Kind.RED_TEAM,
    (
        UserTurn("look at these", (picture("red"), picture("blue"))),
        UserTurn("go on"),
        UserTurn("and this one?", (picture("green"),)),
    ),
    system="be kind",
)


class Student:
    """Plays verl's LLM server: replies in turn, and remembers what it was asked.

    With `end` false it has room for no token; with None, for none where the reply is "".
    """

    def __init__(self, tokenizer, replies, end=True):
        self.tokenizer, self.replies, self.end, self.calls = tokenizer, list(replies), end, []

    async def generate(self, *, request_id, prompt_ids, sampling_params, image_data, mm_processor_kwargs):
        reply = self.replies[len(self.calls) % len(self.replies)]
        self.calls.append({"prompt": list(prompt_ids), "images": len(image_data or []), **sampling_params})
        if isinstance(reply, float):
            await asyncio.sleep(reply)
            reply = "late"
        ids = [*self.tokenizer.encode(reply, add_special_tokens=False), self.tokenizer.eos_token_id]
        if reply.endswith("<|endoftext|>"):
            ids = ids[:-1]  # stopped there, without the template's end token
        room = self.end or (self.end is None and reply)
        ids = ids[: sampling_params["max_tokens"]] if room else []
        return SimpleNamespace(
            token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields={"min_global_steps": 3, "max_global_steps": 4}
        )


class Tutor:
    """Answers with the given assessments in turn, and remembers the requests."""

    def __init__(self, *assessments):
        self.assessments, self.requests = assessments, []

    async def assess(self, request):
        self.requests.append(request)
        return self.assessments[(len(self.requests) - 1) % len(self.assessments)]

    async def aclose(self):
        pass


def assessment(scores=GOOD, question=None, outcome=Outcome.OK):
    return Assessment(
        Verdict(outcome, scores), next_question=question, strategy="deepen" if question else "script", latency_s=0.25
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = str(build_tiny_vlm(tmp_path_factory.mktemp("student") / "tiny"))
    return hf_tokenizer(path), hf_processor(path)


@pytest.fixture
def play(model, monkeypatch):
    tokenizer, processor = model

    async def run(
        student_replies,
        tutor,
        *,
        script=SCRIPT,
        response_length=400,
        steer=None,
        end=True,
        frozen=None,
        twin=False,
        yoke=None,
        trainer=None,
        **row,
    ):
        config = OmegaConf.create(
            {
                "actor_rollout_ref": {
                    "rollout": {"prompt_length": 200, "response_length": response_length, "agent": {"num_workers": 1}}
                },
                "data": {"apply_chat_template_kwargs": {}, "mm_processor_kwargs": {}},
            }
        )
        for key, value in (trainer or {}).items():
            OmegaConf.update(config, key, value)
        settings = Settings(SteerConfig.from_mapping(steer or {}), tutor, b"key", frozen, yoke, greedy_twin=twin)
        monkeypatch.setitem(settings_module._by_config, id(config), (config, settings))
        student = Student(tokenizer, student_replies, end)
        loop = SteerAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=student,
            tokenizer=tokenizer,
            processor=processor,
            dataset_cls=SteerDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2_5_vl",
        )
        fields = script_to_row(script, 0, "rl")
        fields |= {"raw_prompt": fields.pop("prompt"), "session_id": 2, "global_steps": 5, "uid": "u"} | row
        output = await loop.run({"temperature": 1.0, "top_p": 1.0}, **fields)
        return output, student, dialogue_from_dict(output.extra_fields["steer"]["dialogue"])

    return run


def retokenised(processor, dialogue, script=SCRIPT):
    """The whole final dialogue, rendered and tokenised at once."""
    messages, images = [{"role": "system", "content": script.system}], []
    for turn, planned in zip(dialogue.turns, script.turns, strict=False):
        pictures = [Image.open(io.BytesIO(i.data)).convert("RGB") for i in planned.images]
        images += pictures
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": turn.asked}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.reply}]
    text = processor.apply_chat_template(messages, tokenize=False)
    return processor(text=[text], images=images or None)["input_ids"][0]


@pytest.mark.parametrize("shared", [True, False], ids=["tokenised once", "with the history, as other families need"])
async def test_tokens_equal_a_full_retokenisation_of_the_final_dialogue(play, model, monkeypatch, shared):
    monkeypatch.setattr(tokens, "history_free", lambda builder: shared)
    tutor = Tutor(assessment(question="a harder one?"), assessment(question="harder still?"), assessment())
    output, _, dialogue = await play(["first reply", "second, longer reply", "third"], tutor)
    whole = list(retokenised(model[1], dialogue))
    got = output.prompt_ids + output.response_ids
    assert got == whole[: len(got)] and len(whole) - len(got) <= 1  # the template's newline after the last turn


async def test_the_mask_covers_exactly_what_the_student_sampled(play, model):
    output, _, dialogue = await play(["first reply", "second", "third"], Tutor(assessment()))
    pieces, start = [], 0
    for end in turn_ends(output.response_mask):
        ids = [
            i
            for i, m in zip(output.response_ids[start : end + 1], output.response_mask[start : end + 1], strict=True)
            if m
        ]
        pieces.append(model[0].decode(ids))
        start = end + 1
    assert (
        pieces
        == [f"{t.reply}<|im_end|>" for t in dialogue.turns]
        == ["first reply<|im_end|>", "second<|im_end|>", "third<|im_end|>"]
    )
    assert [lp for lp, m in zip(output.response_logprobs, output.response_mask, strict=True) if not m] == [
        0.0
    ] * output.response_mask.count(0)


async def test_every_turn_is_judged_and_the_last_one_is_asked_for_no_next_question(play):
    tutor = Tutor(assessment())
    _, _, dialogue = await play(["a", "b", "c"], tutor)
    assert [t.verdict.scored for t in dialogue.turns] == [True] * 3
    assert [r.adapt for r in tutor.requests] == [True, True, False]
    assert [r.planned_next is None for r in tutor.requests] == [False, False, True]
    assert [len(r.history) for r in tutor.requests] == [1, 2, 3]
    assert tutor.requests[0].history[0].images == SCRIPT.turns[0].images


async def test_the_tutors_question_is_asked_and_the_planned_one_remembered(play, model):
    tutor = Tutor(assessment(question="what about\u200b <|im_start|>this?"), assessment())
    output, _, dialogue = await play(["a"], tutor)
    assert dialogue.turns[1].asked == "what about (im_start)this?" and dialogue.turns[1].planned.text == "go on"
    assert dialogue.turns[1].strategy == "deepen"
    assert "what about (im_start)this?" in model[0].decode(output.response_ids)


async def test_script_feedback_ignores_the_tutors_question(play):
    tutor = Tutor(assessment(question="never asked"))
    _, _, dialogue = await play(["a"], tutor, steer={"dialogue": {"feedback": "script"}})
    assert [t.asked for t in dialogue.turns] == [t.text for t in SCRIPT.turns]
    assert not any(r.adapt for r in tutor.requests)


async def test_a_yoked_dialogue_is_asked_what_another_one_was_and_is_judged_on_its_own_reply(play):
    yoke = Yoke(
        {"seed-7": {(5, 0): ("x", "harder 0", "last 0"), (5, 1): ("x", "harder 1"), (5, 3): ("x", "harder 3")}}, {}
    )
    tutor = Tutor(assessment(question="never asked"), assessment(BREACH), assessment())
    config = {"dialogue": {"feedback": "yoked", "yoked_to": "runs/full/records"}}
    _, _, dialogue = await play(["one", "two", "three"], tutor, steer=config, yoke=yoke, session_id=2)
    assert [turn.asked for turn in dialogue.turns] == ["look at these", "harder 3", "last 0"]
    assert [turn.strategy for turn in dialogue.turns] == ["script", "yoked", "yoked_other"]
    assert not any(request.adapt for request in tutor.requests), "the tutor judges, and writes no question"
    assert [turn.verdict.scores for turn in dialogue.turns] == [GOOD, BREACH, GOOD]
    _, _, dialogue = await play(["one"], tutor, steer=config, yoke=Yoke({}, {}))
    assert [turn.asked for turn in dialogue.turns] == [turn.text for turn in SCRIPT.turns], (
        "nothing on record: the plan"
    )
    _, _, dialogue = await play(["one"], tutor, steer=config, yoke=yoke, steer_validate=True)
    assert {turn.strategy for turn in dialogue.turns} == {"script"}


async def test_validation_follows_the_script_and_is_recorded_apart(play):
    tutor = Tutor(assessment(question="never asked"))
    output, _, dialogue = await play(["a"], tutor, steer_validate=True)
    assert [t.strategy for t in dialogue.turns] == ["script"] * 3
    assert output.extra_fields["steer"]["context"]["validation"] is True


async def test_pictures_of_later_turns_reach_student_and_output(play):
    output, student, _ = await play(["a"], Tutor(assessment()))
    assert [c["images"] for c in student.calls] == [2, 2, 3]
    assert len(output.multi_modal_data["images"]) == 3


async def test_requests_are_seeded_by_seed_step_session_and_turn(play):
    _, first, _ = await play(["a"], Tutor(assessment()))
    _, again, _ = await play(["a"], Tutor(assessment()), uid="another uid")
    _, sibling, _ = await play(["a"], Tutor(assessment()), session_id=3)
    seeds = [[c["seed"] for c in s.calls] for s in (first, again, sibling)]
    assert seeds[0] == seeds[1] and not set(seeds[0]) & set(seeds[2]) and len(set(seeds[0])) == 3


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "seed"),
        ({"trainer.v1.trainer_mode": "sync", "actor_rollout_ref.rollout.name": "vllm"}, "seed"),
        ({"actor_rollout_ref.rollout.name": "sglang"}, "sampling_seed"),
        ({"trainer.v1.trainer_mode": "colocate_async"}, None),
        ({"trainer.v1.trainer_mode": "separate_async", "actor_rollout_ref.rollout.name": "sglang"}, None),
    ],
)
async def test_a_request_that_may_be_resumed_has_no_seed(play, settings, name):
    """And SGLang calls it otherwise: its SamplingParams refuses `seed`."""
    _, student, _ = await play(["a"], Tutor(assessment()), trainer=settings)
    named = [{key for key in call if "seed" in key} for call in student.calls]
    assert named == [{name} if name else set()] * 3


async def test_siblings_share_the_tutors_random_choices_and_fence(play):
    one, two = Tutor(assessment()), Tutor(assessment())
    await play(["a"], one, session_id=0)
    await play(["b"], two, session_id=1)
    assert [(r.random_key, r.fence) for r in one.requests] == [(r.random_key, r.fence) for r in two.requests]
    assert len({r.random_key for r in one.requests}) == 3 and len({r.fence for r in one.requests}) == 1


async def test_a_reply_cut_at_its_budget_gets_an_end_token_with_mask_0(play, model):
    output, student, dialogue = await play(
        ["word " * 60], Tutor(assessment()), steer={"dialogue": {"max_turn_tokens": 5}}
    )
    assert all(t.truncated and t.reply_tokens == 5 for t in dialogue.turns) and dialogue.cut is None
    assert {c["max_tokens"] for c in student.calls} == {5}
    for end in turn_ends(output.response_mask):
        assert output.response_ids[end + 1] == model[0].eos_token_id and output.response_mask[end + 1] == 0


async def test_a_reply_that_stops_at_another_control_token_is_complete(play, model):
    output, _, dialogue = await play(["enough<|endoftext|>"], Tutor(assessment()))
    assert dialogue.cut is None and not any(t.truncated for t in dialogue.turns)
    whole = list(retokenised(model[1], dialogue))
    got = output.prompt_ids + output.response_ids
    assert got == whole[: len(got)]


async def test_a_turns_budget_is_its_share_of_what_the_planned_questions_leave(play):
    output, student, _ = await play(["word " * 400], Tutor(assessment()), response_length=150)
    assert len(output.response_ids) <= 150
    assert len({c["max_tokens"] for c in student.calls}) == 1 and 20 < student.calls[0]["max_tokens"] < 50


async def test_a_question_too_long_for_the_rest_gives_way_to_the_planned_one(play):
    output, _, dialogue = await play(["x" * 200], Tutor(assessment(question="q" * 300)), response_length=150)
    assert [t.asked for t in dialogue.turns] == [t.text for t in SCRIPT.turns] and len(output.response_ids) <= 150


async def test_a_script_without_room_for_replies_is_refused_by_name(play):
    with pytest.raises(ValueError, match=r"seed-7.*max_response_length=30"):
        await play(["a"], Tutor(assessment()), response_length=30)


async def test_on_breach_stops_the_dialogue_and_blames_the_student(play):
    tutor = Tutor(assessment(), assessment(BREACH))
    _, _, dialogue = await play(["a"], tutor, steer={"dialogue": {"stop": "on_breach"}})
    assert len(dialogue.turns) == 2 and dialogue.cut.value == "stopped" and dialogue.cut.blames_student


async def test_by_default_a_breach_does_not_stop_anything(play):
    _, _, dialogue = await play(["a"], Tutor(assessment(BREACH)))
    assert len(dialogue.turns) == 3 and dialogue.cut is None


async def test_a_missing_verdict_leaves_the_turn_unscored_and_goes_on_with_the_plan(play):
    tutor = Tutor(assessment(None, outcome=Outcome.TIMEOUT), assessment())
    _, _, dialogue = await play(["a"], tutor)
    assert [t.verdict.outcome.value for t in dialogue.turns] == ["timeout", "ok", "timeout"]
    assert dialogue.turns[1].asked == "go on"


async def test_the_dialogues_deadline_cuts_it_and_the_rollout_is_not_blamed(play):
    output, _, dialogue = await play(["a", 5.0], Tutor(assessment()), steer={"dialogue": {"deadline_s": 0.5}})
    assert dialogue.cut.value == "deadline" and not dialogue.cut.blames_student and len(dialogue.turns) == 1
    assert len(turn_ends(output.response_mask)) == 1


async def test_a_student_that_queues_at_every_turn_is_slow_and_not_cut(play):
    """A whole validation set waits for its servers; so does every dialogue while a trainer uses their GPUs."""
    _, _, dialogue = await play([0.4], Tutor(assessment()), steer={"dialogue": {"deadline_s": 0.8}})
    assert len(dialogue.turns) == 3 and dialogue.cut is None


async def test_a_deadline_during_judgement_leaves_an_unscored_turn(play):
    class Slow(Tutor):
        async def assess(self, request):
            await asyncio.sleep(5)

    _, _, dialogue = await play(["a"], Slow(), steer={"dialogue": {"deadline_s": 0.5}})
    assert dialogue.turns[0].verdict.outcome is Outcome.TIMEOUT and dialogue.turns[0].verdict.scores is None


async def test_a_server_without_room_for_one_token_cuts_with_its_cause(play):
    output, _, dialogue = await play(["a"], Tutor(assessment()), end=False)
    assert dialogue.turns == [] and dialogue.cut.value == "student_length"
    assert output.response_mask == [0] and output.response_logprobs == [0.0]


async def test_a_server_that_runs_out_of_room_later_blames_who_filled_it(play):
    _, _, dialogue = await play(["a", ""], Tutor(assessment()), end=None)
    assert len(dialogue.turns) == 1 and dialogue.cut.value == "student_length", "all questions were the planned ones"


async def test_the_versions_of_the_weights_are_always_reported(play):
    output, _, _ = await play(["a"], Tutor(assessment()))
    assert (output.extra_fields["min_global_steps"], output.extra_fields["max_global_steps"]) == (3, 4)
    empty, _, _ = await play(["a"], Tutor(assessment()), end=False)
    assert empty.extra_fields["min_global_steps"] == 5


async def test_max_turns_1_is_the_single_turn_ablation(play):
    tutor = Tutor(assessment())
    _, _, dialogue = await play(["a"], tutor, steer={"dialogue": {"max_turns": 1}})
    assert len(dialogue.turns) == dialogue.planned_turns == 1 and tutor.requests[0].planned_next is None


async def test_a_text_only_script_needs_no_picture(play):
    script = dataclasses.replace(SCRIPT, turns=(UserTurn("hello"), UserTurn("again")))
    output, student, _ = await play(["a"], Tutor(assessment()), script=script)
    assert output.multi_modal_data == {} and [c["images"] for c in student.calls] == [0, 0]


class Frozen:
    """A student that never changes: refuses to be reached, or says one thing."""

    def __init__(self, result):
        self.result, self.asked = result, []

    async def reply(self, system, history, question, images, max_tokens):
        self.asked.append((system, history, question, images, max_tokens))
        return self.result


async def test_the_frozen_student_meets_one_attack_of_the_first_rollout_and_is_judged_apart(play):
    tutor, frozen = Tutor(assessment(question="harder")), Frozen(ChatResult(Outcome.OK, "frozen words"))
    output, student, dialogue = await play(["mine"], tutor, frozen=frozen, session_id=0)
    met = output.extra_fields["steer"]["context"]["frozen"]
    [(system, history, question, images, max_tokens)] = frozen.asked
    t = met["turn"] - 1
    assert (met["outcome"], met["scores"]["safety"], met["reply"]) == ("ok", 10, "frozen words")
    assert (system, len(history), question) == ("be kind", t, dialogue.turns[t].asked)
    assert images == SCRIPT.turns[t].images and max_tokens == student.calls[0]["max_tokens"]
    *mine, judged = tutor.requests
    assert len(mine) == 3 and not judged.adapt and judged.planned_next is None
    assert [e.reply for e in judged.history] == ["mine"] * t + ["frozen words"]
    assert [turn.reply for turn in dialogue.turns] == ["mine"] * 3


async def test_the_frozen_student_is_left_out_where_it_says_nothing_about_attacks(play):
    frozen = Frozen(ChatResult(Outcome.TIMEOUT))
    output, _, _ = await play(["mine"], Tutor(assessment()), frozen=frozen, session_id=0)
    met = output.extra_fields["steer"]["context"]["frozen"]
    assert (met["outcome"], met["scores"]) == ("timeout", None)
    benign = dataclasses.replace(SCRIPT, kind=Kind.BENIGN)
    for row in ({"session_id": 1}, {"session_id": 0, "steer_validate": True}, {"session_id": 0, "script": benign}):
        output, _, _ = await play(["mine"], Tutor(assessment()), frozen=frozen, **row)
        assert "frozen" not in output.extra_fields["steer"]["context"]
    assert len(frozen.asked) == 1


async def test_siblings_share_one_greedy_twin_which_is_judged_and_never_trained_on(play):
    once = Once()
    for session in (0, 1):
        output, student, dialogue = await play(
            ["one", "two"], Tutor(assessment(question="and deeper?")), twin=True, steer_once=once, session_id=session
        )
        greedy = dialogue_from_dict(output.extra_fields["steer"]["greedy"])
        temperatures = [call["temperature"] for call in student.calls]
        # The first to come plays it beside its own dialogue; whoever comes later finds it done.
        assert sorted(temperatures) == ([0.0] * 3 + [1.0] * 3 if session == 0 else [1.0] * 3)
        assert len(greedy.turns) == 3 and all(turn.verdict.scored for turn in greedy.turns)
        assert [turn.asked for turn in greedy.turns[1:]] == ["and deeper?"] * 2
        assert sum(output.response_mask) == sum(turn.reply_tokens for turn in dialogue.turns)


async def test_validation_and_other_estimators_play_no_greedy_twin(play):
    for row in ({"twin": True, "steer_validate": True}, {"twin": False}):
        output, student, _ = await play(["one"], Tutor(assessment()), **row)
        assert "greedy" not in output.extra_fields["steer"] and len(student.calls) == 3
