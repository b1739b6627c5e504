"""Records: a dialogue survives its file, replays replace, bad lines are named, rescoring asks nobody."""

import json
import stat

import pytest

from verl_steer.config import PRESETS
from verl_steer.dialogue import Cut, Dialogue, ImageRef, Kind, Script, Turn, UserTurn
from verl_steer.records import (
    RecordError,
    RecordWriter,
    build_record,
    dialogue_from_dict,
    dialogue_to_dict,
    read_records,
    rescore,
    score_to_dict,
    write_jsonl,
)
from verl_steer.scores import Outcome, TutorScores, Verdict
from verl_steer.tcsr import score_dialogue

IMAGE = ImageRef(b"\x89PNG one")


def make(cut=None):
    plan = (UserTurn("what is it?", (IMAGE,)), UserTurn("and  now?"), UserTurn("tell me\u2028 é"))
    script = Script("s-1", Kind.RED_TEAM, plan, category="c", source="src", system="hidden", meta={"secret": 1})
    ok = Verdict(Outcome.OK, TutorScores(10, 9, 8), "it is\ntrue")
    turns = [
        Turn(plan[0], "what is it?", "a ring", ok, "script", 3, False, 0.25, 1),
        Turn(
            plan[1],
            "but my friend…",
            "<think>x</think>no",
            Verdict(Outcome.TIMEOUT, reason="slow"),
            "persistence",
            9,
            True,
            2.5,
            4,
        ),
        Turn(plan[2], "tell", "ok", Verdict(Outcome.REFUSED, TutorScores(1, 1, 1)), "deepen", 1, False, 0.5, 2),
    ]
    return Dialogue(script, 3, turns[: 2 if cut else 3], cut)


def record(dialogue, preset="paper", **context):
    score = score_dialogue(dialogue, PRESETS[preset], 0.5)
    context = {"step": 1, "session": 0, "uid": "u", "validation": False, **context}
    return build_record(context, dialogue_to_dict(dialogue), score_to_dict(score))


# -- a dialogue as plain data ------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [None, *Cut])
def test_a_dialogue_survives_json_but_for_pictures_and_what_nobody_may_see(cut):
    dialogue = make(cut)
    data = dialogue_to_dict(dialogue)
    back = dialogue_from_dict(json.loads(json.dumps(data)))
    assert [t.verdict for t in back.turns] == [t.verdict for t in dialogue.turns]
    assert (back.cut, back.planned_turns, back.script.kind) == (cut, 3, Kind.RED_TEAM)
    # Everything comes back, the pictures apart, of which the record names the hash.
    for turn in data["turns"]:
        turn["images"] = []
    assert dialogue_to_dict(back) == data
    assert dialogue_to_dict(dialogue)["turns"][0]["images"] == [IMAGE.sha256]
    assert "secret" not in json.dumps(data)


def test_an_unjudged_turn_survives_too():
    dialogue = make()
    dialogue.turns[2].verdict = None
    assert dialogue_from_dict(dialogue_to_dict(dialogue)).turns[2].verdict is None


def test_scoring_what_was_read_back_gives_the_same_return():
    for preset in PRESETS.values():
        direct = score_dialogue(make(), preset, 0.5)
        again = score_dialogue(dialogue_from_dict(json.loads(json.dumps(dialogue_to_dict(make())))), preset, 0.5)
        assert again == direct


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop("script"), "KeyError: 'script'"),
        (lambda d: d.update(kind="evil"), "'evil' is not a valid Kind"),
        (lambda d: d.update(cut="bored"), "'bored' is not a valid Cut"),
        (
            lambda d: d["turns"][0].update(scores={"safety": 11, "usefulness": 1, "faithfulness": 1}),
            "safety must be an integer",
        ),
        (lambda d: d["turns"][0].update(scores=None), "an ok verdict carries scores"),
        (lambda d: d["turns"][0].pop("reply"), "KeyError: 'reply'"),
        (lambda d: d.update(turns=3), "TypeError"),
    ],
)
def test_a_record_that_cannot_be_a_dialogue_names_its_seed(spoil, message):
    data = dialogue_to_dict(make())
    spoil(data)
    with pytest.raises(RecordError) as caught:
        dialogue_from_dict(data)
    assert "seed 's-1'" in str(caught.value) and message in str(caught.value)


def test_a_record_says_turn_by_turn_what_it_was_worth():
    got = record(make())
    score = score_dialogue(make(), PRESETS["paper"], 0.5)
    assert [t["reward"] for t in got["turns"]] == score.turn_rewards and got["turns"][1]["reward"] is None
    assert [t["shaped"] for t in got["turns"]] == score.shaped
    assert sum(t["placed"] for t in got["turns"]) == pytest.approx(got["return"])
    assert got["bounds"] == list(score.bounds) and got["masked"] is False
    assert (got["step"], got["seed_id"], got["planned_turns"]) == (1, "s-1", 3)


def test_a_masked_rollout_has_no_return_on_record():
    got = record(make(Cut.DEADLINE))
    assert got["return"] is None and got["masked"] and got["mask_reason"] == "cut: deadline"


def test_without_our_score_a_record_holds_the_dialogue_alone():
    got = build_record({"step": 3}, dialogue_to_dict(make()), None)
    assert "return" not in got and "reward" not in got["turns"][0] and got["step"] == 3


# -- files -------------------------------------------------------------------------------------------


def test_records_come_back_in_the_order_of_steps(tmp_path):
    writer = RecordWriter(tmp_path / "records")
    for step in (2, 10, 100):
        path = writer.write_step("train", step, [record(make(), step=step, session=s) for s in range(2)])
        assert path.name == f"step_{step:06d}.jsonl"
    writer.write_step("val", 100, [record(make(), step=100)])
    assert [(r["step"], r["session"]) for r in read_records(tmp_path / "records", "train")] == [
        (step, session) for step in (2, 10, 100) for session in range(2)
    ]
    assert len(list(read_records(tmp_path / "records", "val"))) == 1
    assert list(read_records(tmp_path / "nowhere", "train")) == []


def test_records_are_for_their_owner_alone(tmp_path):
    path = RecordWriter(tmp_path / "records").write_step("train", 1, [record(make())])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


def test_text_with_line_separators_stays_on_one_line(tmp_path):
    path = RecordWriter(tmp_path).write_step("train", 1, [record(make())])
    assert path.read_bytes().count(b"\n") == 1
    assert next(read_records(tmp_path, "train"))["script"][2] == "tell me\u2028 é"


def test_later_batches_of_a_step_add_to_it_and_the_splits_do_not_disturb_each_other(tmp_path):
    writer = RecordWriter(tmp_path)
    for session in range(3):
        writer.write_step("val", 4, [record(make(), step=4, session=session)])
        writer.write_step("train", 4, [record(make(), step=4, session=session)])
    for split in ("train", "val"):
        assert [r["session"] for r in read_records(tmp_path, split)] == [0, 1, 2]


def test_a_replayed_step_replaces_the_earlier_attempts_and_later_ones_are_set_aside(tmp_path):
    first = RecordWriter(tmp_path)
    for step in range(1, 6):
        first.write_step("train", step, [record(make(), step=step, uid="first")] * 2)
        first.write_step("val", step, [record(make(), step=step, uid="first")])
    resumed = RecordWriter(tmp_path)
    resumed.write_step("train", 3, [record(make(), step=3, uid="second")])
    assert [(r["step"], r["uid"]) for r in read_records(tmp_path, "train")] == [
        (1, "first"), (1, "first"), (2, "first"), (2, "first"), (3, "second"),
    ]  # fmt: skip
    assert [r["step"] for r in read_records(tmp_path, "val")] == [1, 2]
    resumed.write_step("train", 4, [record(make(), step=4, uid="second")])
    assert [r["uid"] for r in read_records(tmp_path, "train")][-2:] == ["second", "second"]
    # Nothing that was written is lost.
    assert sorted(p.name for p in (tmp_path / "train").glob("*.superseded")) == [
        "step_000004.jsonl.superseded",
        "step_000005.jsonl.superseded",
    ]


def test_a_validation_alone_sets_nothing_aside(tmp_path):
    """`trainer.val_only` of an older checkpoint, and the validation that a resumed run begins with."""
    first = RecordWriter(tmp_path)
    for step in range(1, 4):
        first.write_step("train", step, [record(make(), step=step)])
    RecordWriter(tmp_path).write_step("val", 1, [record(make(), step=1)])
    assert [r["step"] for r in read_records(tmp_path, "train")] == [1, 2, 3]
    resumed = RecordWriter(tmp_path)
    resumed.write_step("val", 1, [record(make(), step=1)])
    resumed.write_step("train", 2, [record(make(), step=2)])
    assert [r["step"] for r in read_records(tmp_path, "train")] == [1, 2]
    assert [r["step"] for r in read_records(tmp_path, "val")] == [1]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(ValueError, match="Out of range float"):
        write_jsonl(path, [{"a": 2}, {"a": float("nan")}])
    assert path.read_text() == '{"a": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_half_a_character_of_a_model_does_not_stop_the_step(tmp_path):
    frozen = {"turn": 1, "reply": "a \ud83d", "outcome": "ok", "scores": None}
    reason = {"reason": json.loads('"\\udc00 and \\ud83d\\ude00"')}
    RecordWriter(tmp_path).write_step("train", 1, [record(make(), frozen=frozen), reason])
    first, second = read_records(tmp_path, "train")
    assert first == record(make(), frozen={**frozen, "reply": "a \ufffd"})
    assert second == {"reason": "\ufffd and \U0001f600"}


@pytest.mark.parametrize(
    ("line", "message"), [('{"step": 1, "tur', "no JSON"), ("[1]", "a record is a JSON object, found list")]
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    path = RecordWriter(tmp_path).write_step("train", 7, [record(make())])
    with path.open("a") as file:
        file.write(line)
    with pytest.raises(RecordError) as caught:
        list(read_records(tmp_path, "train"))
    assert f"{path}, line 2: {message}" in str(caught.value)


def test_a_line_that_is_no_utf_8_is_named_by_file_and_number(tmp_path):
    path = RecordWriter(tmp_path).write_step("train", 7, [record(make())])
    with path.open("ab") as file:
        file.write(b'{"seed_id": "caf\xe9"}\n')
    with pytest.raises(RecordError) as caught:
        list(read_records(tmp_path, "train"))
    assert f"{path}, line 2: no UTF-8: 'utf-8' codec can't decode byte 0xe9" in str(caught.value)


# -- rescoring ---------------------------------------------------------------------------------------


def test_rescoring_with_the_same_reward_changes_nothing(tmp_path):
    RecordWriter(tmp_path).write_step("train", 1, [record(make()), record(make(Cut.STOPPED))])
    stored = list(read_records(tmp_path, "train"))
    assert list(rescore(tmp_path, PRESETS["paper"], min_scored=0.5)) == stored


def test_rescoring_with_another_reward_replaces_every_score_and_keeps_the_dialogue(tmp_path):
    RecordWriter(tmp_path).write_step("train", 1, [record(make())])
    stored = next(read_records(tmp_path, "train"))
    (again,) = rescore(tmp_path, PRESETS["reference"], min_scored=0.5)
    assert again == json.loads(json.dumps(record(make(), preset="reference")))
    assert again["return"] != stored["return"] and again["turns"][0]["reward"] != stored["turns"][0]["reward"]
    assert again["turns"][0]["images"] == [IMAGE.sha256]
    (strict,) = rescore(tmp_path, PRESETS["paper"])
    assert strict["masked"] and "2 of 3 turns" in strict["mask_reason"]


def test_rescoring_scores_a_greedy_twin_by_the_same_reward_and_keeps_no_return_of_the_old_one(tmp_path):
    """ReMax subtracts it: the twin here is the very dialogue, so the difference is 0 by any settings."""
    held, silent = record(make(), session=0), record(make(), session=1)
    held |= {"greedy": dialogue_to_dict(make()), "greedy_return": held["return"]}
    silent |= {"greedy_return": held["return"]}
    masked = {**held, "greedy": dialogue_to_dict(make(Cut.DEADLINE))}
    RecordWriter(tmp_path).write_step("train", 1, [held, silent, masked])
    first, second, third = rescore(tmp_path, PRESETS["reference"], min_scored=0.5)
    assert first["greedy_return"] == first["return"] != held["return"]
    assert first["greedy"] == held["greedy"]
    assert "greedy_return" not in second and second["return"] == first["return"], (
        "its group's first record has the twin"
    )
    assert third["greedy_return"] is None


def test_rescoring_names_the_line_that_cannot_be_scored(tmp_path):
    broken = record(make())
    broken["planned_turns"] = 2
    path = RecordWriter(tmp_path).write_step("val", 1, [record(make()), broken])
    with pytest.raises(RecordError, match="3 turns happened, 2 were planned") as caught:
        list(rescore(tmp_path, PRESETS["paper"], "val"))
    assert f"{path}, line 2" in str(caught.value)
