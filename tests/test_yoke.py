"""Yoked questions come from another dialogue of the same seed, and say from which."""

import pytest

from verl_steer.config import ConfigError, SteerConfig
from verl_steer.records import RecordError, RecordWriter
from verl_steer.yoke import OTHER_STEP, SAME_STEP, Yoke


def record(seed_id: str, step: int, session: int, turns: int, **more) -> dict:
    asked = [{"asked": f"{seed_id} {step} {session} {t}"} for t in range(turns)]
    return {"seed_id": seed_id, "step": step, "session": session, "turns": asked, "script": ["a", "b", "c"], **more}


@pytest.fixture
def records(tmp_path):
    writer = RecordWriter(tmp_path / "records")
    writer.write_step("train", 1, [record("s", 1, 0, 3), record("s", 1, 1, 2), record("s", 1, 2, 3)])
    writer.write_step("train", 2, [record("r", 2, 0, 3)])
    writer.write_step("val", 1, [record("v", 1, 0, 3)])
    return tmp_path / "records"


def test_the_next_session_of_the_same_step_is_asked_first_and_the_last_one_turns_round(records):
    yoke = Yoke.read(records)
    assert yoke.question("s", 1, 0, 1) == ("s 1 1 1", SAME_STEP)
    assert yoke.question("s", 1, 1, 2) == ("s 1 2 2", SAME_STEP)
    assert yoke.question("s", 1, 2, 1) == ("s 1 0 1", SAME_STEP)


def test_a_dialogue_that_ended_early_gives_way_to_another_one_of_the_seed_never_to_the_own_place(records):
    yoke = Yoke.read(records)
    # Session 1 has two turns only; of the others that have a third, session 0 is the own place.
    assert yoke.question("s", 1, 0, 2) == ("s 1 2 2", OTHER_STEP)


def test_another_step_s_dialogue_stands_in_the_same_one_at_every_call(records):
    yoke = Yoke.read(records)
    text, source = yoke.question("s", 7, 0, 1)
    assert source == OTHER_STEP and text in {"s 1 0 1", "s 1 1 1", "s 1 2 1"}
    assert all(yoke.question("s", 7, 0, 1) == (text, source) for _ in range(5))
    assert len({yoke.question("s", 7, n, 1) for n in range(40)}) == 3


def test_where_nothing_is_on_record_the_plan_stands(records):
    yoke = Yoke.read(records)
    assert yoke.question("unknown", 1, 0, 1) is None
    assert yoke.question("s", 1, 0, 5) is None
    assert yoke.question("r", 2, 0, 1) is None, "its only dialogue has the own place"
    assert yoke.question("v", 1, 0, 1) is None, "validation is no source"


def test_the_seeds_of_another_world_are_told(records):
    yoke = Yoke.read(records)
    assert yoke.coverage({"s": ("a", "b", "c"), "new": ("x",)}) == (1, [])
    assert yoke.coverage({"s": ("a", "other", "c")}) == (1, ["s"])


def test_a_folder_without_records_and_a_damaged_record_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no records of training"):
        Yoke.read(tmp_path)
    RecordWriter(tmp_path / "r").write_step("train", 1, [{"seed_id": "s", "step": 1}])
    with pytest.raises(RecordError, match="a record lacks 'session'"):
        Yoke.read(tmp_path / "r")


@pytest.mark.parametrize(
    "dialogue", [{"feedback": "yoked"}, {"feedback": "tutor", "yoked_to": "x"}, {"feedback": "yoked", "yoked_to": ""}]
)
def test_feedback_and_folder_belong_together(dialogue):
    with pytest.raises(ConfigError, match="belong together"):
        SteerConfig.from_mapping({"dialogue": dialogue})


def test_validation_is_never_yoked():
    assert SteerConfig.from_mapping({"dialogue": {"feedback": "yoked", "yoked_to": "x"}}).dialogue.yoked_to == "x"
    with pytest.raises(ConfigError, match="validation"):
        SteerConfig.from_mapping({"validation": {"feedback": "yoked"}})
