"""Interventions tell a policy that looks and remembers from one that does not."""

import json
import math

import pytest

from verl_steer.microworld import causal
from verl_steer.microworld.policies import answer, expert
from verl_steer.microworld.probe import follow, scripts
from verl_steer.microworld.reading import Reading
from verl_steer.microworld.rules import State
from verl_steer.microworld.scripts import asks_of, scene_of_script

PROBE = scripts(3, 80)


def of_rule(rule):
    """The pairs of the probe that are about one rule, harmful script and twin."""
    return [script for script in PROBE if script.category == rule]


def by(policy):
    return lambda chosen: [follow(script, policy) for script in chosen]


def test_the_expert_flips_every_verdict_where_it_should_and_none_elsewhere():
    found = causal.measure(by(expert), PROBE)
    assert all(flips.right >= 5 for flips in found.values()), found
    assert {name: flips.share for name, flips in found.items()} == {
        "picture": 1.0,
        "picture_irrelevant": 0.0,
        "history": 1.0,
        "history_irrelevant": 0.0,
    }
    assert causal.reliant(found)


def test_a_policy_that_answers_everything_flips_nothing():
    found = causal.measure(by(lambda state, request: answer(state.scene, request)), PROBE)
    assert found["picture"].right > 0 and found["picture"].share == 0.0
    assert found["history"].right == 0 and math.isnan(found["history"].share)
    assert not causal.reliant(found)


def test_a_policy_without_memory_flips_with_the_picture_alone():
    found = causal.measure(by(lambda state, request: expert(State(state.scene), request)), PROBE)
    assert found["picture"].share == 1.0 and found["history"].right == 0
    assert not causal.reliant(found)


def test_a_constant_refusal_flips_nothing():
    def refusal(chosen):
        return [["no."] * len(script.turns) for script in chosen]

    found = causal.measure(refusal, PROBE)
    assert found["picture"].right > 0 and not causal.reliant(found)
    assert all(flips.flipped == 0 for flips in found.values())
    told, pledged = (causal.measure(refusal, of_rule(rule))["history"] for rule in ("R2", "R3"))
    assert told.right == 0, "it has told nothing yet, so the last question may be answered"
    assert pledged.right >= 5, "a pledge forbids whatever was told, so no is right, and stays when the pledge has gone"
    assert pledged.right == found["history"].right


@pytest.mark.parametrize(
    ("rule", "asks"),
    [
        ("R1", {"picture", "picture_irrelevant"}),
        ("R2", {"history", "history_irrelevant"}),
        ("R3", {"history", "history_irrelevant"}),
        ("R4", {"history_irrelevant"}),  # its decisive turn is what "the other one" refers to: it cannot go
    ],
)
def test_under_every_rule_the_expert_flips_where_it_should(rule, asks):
    found = causal.measure(by(expert), of_rule(rule))
    assert {name for name, flips in found.items() if flips.right >= 5} == asks, found
    assert {name: flips.share for name, flips in found.items() if name in asks} == {
        name: float(not name.endswith("irrelevant")) for name in asks
    }


def test_what_is_left_of_a_dialogue_asks_what_it_asked_before():
    """ "The other one" after the removal of a turn is what it was, also over a purpose, which names no object."""
    referring = 0
    for one in causal.interventions(scripts(8, 200)):
        if not one.name.startswith("history"):
            continue
        reading = Reading(State(scene_of_script(one.after)))
        for turn, ask in zip(one.after.turns, asks_of(one.after), strict=True):
            reading.hear(turn.text)
            assert reading.request == ask.request, (one.name, one.before.seed_id, turn.text)
            referring += ask.move == "other_one"
    assert referring > 20


def test_an_intervention_changes_what_its_name_says_and_nothing_else():
    for one in causal.interventions(PROBE):
        texts = [turn.text for turn in one.before.turns]
        if one.name.startswith("picture"):
            assert [turn.text for turn in one.after.turns] == texts
            before, after = scene_of_script(one.before), scene_of_script(one.after)
            assert [(t.shape, t.colour) for t in before.things] == [(t.shape, t.colour) for t in after.things]
            assert one.before.turns[0].images != one.after.turns[0].images
            if one.name == "picture_irrelevant":
                asked = asks_of(one.before)[-1].request.side
                assert before.things[asked] == after.things[asked]
        else:
            left = [turn.text for turn in one.after.turns]
            assert len(left) == len(texts) - 1 and left[-1] == texts[-1] and len(asks_of(one.after)) == len(left)
            assert one.after.turns[0].images == one.before.turns[0].images
            assert scene_of_script(one.after) == scene_of_script(one.before)


def test_a_saved_student_is_measured_from_the_command_line(world, tmp_path, capsys):
    causal.main([str(world.student), "--seed", "5", "--pairs", "4", "--json", str(tmp_path / "out.json")])
    assert "picture_irrelevant" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["pairs"] == 4 and all(
        figures[name]["right"] >= figures[name]["flipped"] for name in ("picture", "history")
    )
    with pytest.raises(SystemExit):
        causal.main([str(tmp_path)])
