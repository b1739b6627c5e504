"""Scalars of a step: each is what its name says, and what was not measured is not there."""

import math

import numpy as np
import pytest

from verl_steer.summary import reply_kind, summarise

NO_SCORES = None


def turn(safety, reward=0.5, **over):
    scores = {"safety": safety, "usefulness": 1, "faithfulness": 5} if safety else NO_SCORES
    base = {
        "reply": "a ring",
        "reply_tokens": 5,
        "scores": scores,
        "reward": reward if safety else None,
        "outcome": "ok" if safety else "timeout",
        "strategy": "script",
        "latency_s": 0.5,
        "tutor_calls": 1,
    }
    return {**base, **over}


def record(turns, ret=1.0, uid="a", kind="red_team", **over):
    base = {"uid": uid, "kind": kind, "turns": turns, "planned_turns": len(turns), "return": ret, "cut": None}
    return {**base, "masked": ret is None, **over}


def test_returns_are_averaged_over_the_valid_rollouts():
    got = summarise([record([turn(10)], 1.0), record([turn(10)], 2.0), record([turn(None)], None)])
    assert got["steer/return/mean"] == pytest.approx(1.5)
    assert got["steer/masked/fraction"] == pytest.approx(1 / 3)
    assert got["steer/unscored/fraction"] == pytest.approx(1 / 3)


def test_safety_is_read_turn_by_turn_over_those_that_got_there():
    got = summarise([record([turn(10), turn(4)]), record([turn(8)]), record([turn(None), turn(8), turn(1)])])
    assert (got["steer/safety/turn_01"], got["steer/safety/turn_02"], got["steer/safety/turn_03"]) == (9.0, 6.0, 1.0)
    assert "steer/safety/turn_04" not in got and got["steer/turns/mean"] == 2.0


def test_a_dialogue_fails_at_its_first_breach():
    got = summarise([record([turn(10), turn(4), turn(1)]), record([turn(2)]), record([turn(5), turn(10)])])
    assert got["steer/first_failed_turn/mean"] == 1.5
    assert got["steer/failed/fraction"] == pytest.approx(2 / 3)
    assert "steer/first_failed_turn/mean" not in summarise([record([turn(10)])])


def test_a_dialogue_that_lacks_a_verdict_is_not_taken_for_one_that_stayed_safe():
    breach, safe = record([turn(2), turn(None)]), record([turn(10), turn(10)])
    unjudged, cut = record([turn(10), turn(None)]), record([turn(10)], planned_turns=2)
    assert summarise([breach, safe, unjudged, cut])["steer/failed/fraction"] == 0.5
    assert "steer/failed/fraction" not in summarise([unjudged, cut])


def test_rewards_are_told_apart_by_what_the_script_wants():
    got = summarise(
        [record([turn(10, 0.2)]), record([turn(10, 0.4)], kind="obfuscated"), record([turn(10, 0.9)], kind="benign")]
    )
    assert got["steer/turn_reward/harmful"] == pytest.approx(0.3)
    assert got["steer/turn_reward/benign"] == pytest.approx(0.9)
    assert got["steer/turn_reward/mean"] == pytest.approx(0.5)


def test_a_group_teaches_nothing_if_its_valid_returns_are_equal_or_fewer_than_two():
    groups = {"equal": (1.0, 1.0), "apart": (1.0, 2.0), "one valid": (1.0, None), "none valid": (None, None)}
    got = summarise([record([turn(10)], ret, uid) for uid, returns in groups.items() for ret in returns])
    assert got["steer/groups/no_signal_fraction"] == 0.75
    assert "steer/groups/no_signal_fraction" not in summarise([record([turn(10)], uid=u) for u in "abc"])


def test_unscored_turns_are_counted_by_the_kind_of_reply():
    turns = [
        turn(None, reply="I cannot say that."),
        turn(10, reply="No, that is sealed."),
        turn(None, reply="word " * 300, reply_tokens=300),
        turn(10, reply="Nothing special"),
    ]
    got = summarise([record(turns)])
    assert (got["steer/unscored/refusal"], got["steer/unscored/long"], got["steer/unscored/other"]) == (0.5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("I'm sorry, but no.", "refusal"),
        ("I can\u2019t help with it", "refusal"),
        ("<think>should I? it is sealed</think> I will not tell", "refusal"),
        ("<think>a</think><answer>Sorry!</answer>", "refusal"),
        ("no", "refusal"),
        ("Notice the ring", "other"),
        ("I cannotate", "other"),
        ("<think>no end", "other"),
        ("", "other"),
    ],
)
def test_kinds_of_replies_are_read_from_the_surface(reply, kind):
    assert reply_kind(turn(10, reply=reply)) == kind


def test_strategies_and_outcomes_are_counted():
    turns = [turn(10), turn(10, strategy="deepen"), turn(None, strategy="deepen"), turn(None, outcome=None)]
    got = summarise([record(turns, cut="stopped")])
    assert (got["steer/strategy/script"], got["steer/strategy/deepen"]) == (2.0, 2.0)
    assert (got["steer/outcome/ok"], got["steer/outcome/timeout"], got["steer/outcome/unjudged"]) == (2.0, 1.0, 1.0)
    assert got["steer/cut/fraction"] == 1.0


def test_latency_is_of_the_turns_that_called_the_tutor():
    latencies = [0.1, 0.2, 0.3, 4.0]
    turns = [turn(10, latency_s=s, tutor_calls=2) for s in latencies] + [turn(None, latency_s=0.0, tutor_calls=0)]
    got = summarise([record(turns)])
    assert got["steer/tutor/calls"] == 8.0
    assert got["steer/tutor/latency_p50_s"] == pytest.approx(0.25)
    assert got["steer/tutor/latency_p95_s"] == pytest.approx(float(np.percentile(latencies, 95)))


def test_what_was_not_measured_is_left_out_never_nan_nor_zero():
    assert summarise([]) == {}
    for records in ([record([], None)], [record([turn(None)], None)], [record([turn(None, tutor_calls=0)], None)]):
        got = summarise(records)
        assert all(type(v) is float and math.isfinite(v) for v in got.values())
        assert not {"steer/return/mean", "steer/turn_reward/mean", "steer/safety/turn_01"} & set(got)
    assert "steer/tutor/latency_p50_s" not in got


def test_keys_can_be_told_apart_by_a_prefix():
    assert all(key.startswith("steer_val/") for key in summarise([record([turn(10)])], prefix="steer_val"))


def test_records_of_another_reward_manager_have_no_rewards_and_no_returns():
    turns = [{k: v for k, v in turn(10).items() if k != "reward"}]
    bare = {"uid": "a", "kind": "benign", "turns": turns, "planned_turns": 1, "cut": None}
    got = summarise([bare, bare])
    assert got["steer/safety/turn_01"] == 10.0 and "steer/return/mean" not in got


def test_attack_difficulty_compares_two_students_on_the_same_questions():
    def met(safety, turn_number=1):
        return {"frozen": {"turn": turn_number, "reply": "", "outcome": "ok", **turn(safety)}}

    records = [
        record([turn(10), turn(1)], **met(1, 2)),
        record([turn(10)], **met(2)),
        record([turn(1)], **met(9)),
        record([turn(1)], frozen={"turn": 1, "outcome": "timeout", "scores": None}),
        record([turn(1)]),
        record([turn(None)], **met(1)),  # the student's verdict is missing: no comparison
    ]
    got = summarise(records)
    assert got["steer/attack_difficulty/frozen_failed"] == pytest.approx(2 / 3)
    assert got["steer/attack_difficulty/student_failed"] == pytest.approx(2 / 3)
    assert "steer/attack_difficulty/frozen_failed" not in summarise(records[-3:])
