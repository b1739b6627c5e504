"""Scripts, twins and splits hold what the micro-world promises."""

from dataclasses import replace
from itertools import combinations

import pytest

from verl_steer.data.rows import row_to_script, script_to_row
from verl_steer.dialogue import Kind
from verl_steer.microworld import lexicon
from verl_steer.microworld.picture import scene_of
from verl_steer.microworld.rules import State
from verl_steer.microworld.scripts import SPLITS, asks_of, generate, scene_of_script

PAIRS = {split: generate(split, 7, 60) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_twins_differ_only_in_the_mark_or_in_one_early_turn(split):
    scripts = PAIRS[split]
    changed_pictures = changed_turns = 0
    for harmful, benign in zip(scripts[::2], scripts[1::2], strict=True):
        assert harmful.kind.harmful and benign.kind is Kind.BENIGN
        assert harmful.meta["pair"] == benign.meta["pair"]
        assert harmful.turns[-1].text == benign.turns[-1].text
        texts = [a.text != b.text for a, b in zip(harmful.turns, benign.turns, strict=True)]
        scenes = scene_of_script(harmful), scene_of_script(benign)
        bare = [
            [replace(thing, seal="open", faint=False, decoy=False) for thing in scene.things] + [scene.jitter]
            for scene in scenes
        ]
        assert bare[0] == bare[1]
        picture = scenes[0] != scenes[1]
        assert (picture, sum(texts)) in {(True, 0), (False, 1)}
        changed_pictures += picture
        changed_turns += sum(texts)
    assert changed_pictures > 5 and changed_turns > 5


@pytest.mark.parametrize("split", SPLITS)
def test_the_last_question_is_forbidden_in_the_harmful_script_alone(split):
    for script in PAIRS[split]:
        state = State(scene_of_script(script))
        forbidden = []
        for ask in asks_of(script):
            forbidden.append(state.forbids(ask.request.side, ask.request.words))
            if ask.act == "purpose":
                state.purposes.add(ask.purpose)
            elif not forbidden[-1]:
                state.heard[ask.side].update(ask.request.words)
        rule = script.meta["rule"]
        assert forbidden[-1] == (("R1" if rule == "R4" else rule) if script.kind.harmful else "")
        assert script.kind.harmful or not any(forbidden)
        if rule in ("R2", "R3") and script.kind.harmful:
            # The last question alone is safe: only the history makes it a breach.
            last = asks_of(script)[-1]
            assert not State(scene_of_script(script)).forbids(last.side, last.request.words)


def test_references_are_decided_by_the_turn_before():
    found = [script for split in ("probe", "bench") for script in PAIRS[split] if script.meta["rule"] == "R4"]
    assert len(found) >= 12 and not any(s.meta["rule"] == "R4" for split in ("sft", "rl") for s in PAIRS[split])
    for harmful, benign in zip(found[::2], found[1::2], strict=True):
        assert "other one" in harmful.turns[-1].text and scene_of_script(harmful) == scene_of_script(benign)
        assert [a.text == b.text for a, b in zip(harmful.turns, benign.turns, strict=True)][-2:] == [False, True]


def test_every_rule_occurs_and_purposes_that_do_not_matter_under_each():
    for split in SPLITS:
        rules = {script.meta["rule"] for script in PAIRS[split]}
        assert rules == ({"R1", "R2", "R3", "R4"} if split in ("probe", "bench") else {"R1", "R2", "R3"})
    said = {(s.meta["rule"], ask.purpose) for s in PAIRS["rl"] for ask in asks_of(s) if ask.act == "purpose"}
    assert {rule for rule, purpose in said if purpose != lexicon.PLEDGE} == {"R1", "R2", "R3"}
    assert {rule for rule, purpose in said if purpose == lexicon.PLEDGE} == {"R3"}


def _held_out(script):
    scene, found = scene_of_script(script), set()
    for thing in scene.things:
        if (thing.shape, thing.colour) in lexicon.HELD_OUT_PAIRS:
            found.add("pair")
    for ask in asks_of(script):
        if ask.act in ("all", "part") and scene.things[ask.side].shape in lexicon.HELD_OUT_SHAPES:
            found.add("shape")
        if ask.framing in lexicon.HELD_OUT_FRAMINGS:
            found.add("framing")
        if ask.move in lexicon.HELD_OUT_MOVES:
            found.add("move")
        if ask.template in lexicon.HELD_OUT_TEMPLATES:
            found.add("template")
    return found


def test_training_never_meets_what_is_held_out_and_the_probe_and_the_bench_do():
    assert {kind for script in PAIRS["sft"] + PAIRS["rl"] for kind in _held_out(script)} == set()
    for split in ("probe", "bench"):
        assert {k for s in PAIRS[split] for k in _held_out(s)} == {"pair", "shape", "framing", "move", "template"}
    assert len(lexicon.HELD_OUT_PAIRS) == 24
    used = {ask.move for script in PAIRS["sft"] for ask in asks_of(script)} - {""}
    assert used == set(lexicon.SFT_MOVES)


def test_no_picture_is_shared_between_splits():
    pictures = {split: {s.turns[0].images[0].sha256 for s in scripts} for split, scripts in PAIRS.items()}
    for one, other in combinations(SPLITS, 2):
        assert not pictures[one] & pictures[other], (one, other)


def test_a_seed_fixes_its_scripts_and_another_changes_them():
    assert generate("rl", 7, 3) == PAIRS["rl"][:6]
    assert [s.turns for s in generate("rl", 8, 3)] != [s.turns for s in PAIRS["rl"][:6]]
    with pytest.raises(ValueError, match="split must be one of"):
        generate("train", 0, 1)


def test_lengths_stay_within_the_plan():
    for split, scripts in PAIRS.items():
        lengths = {len(script.turns) for script in scripts}
        assert min(lengths) == 3 and max(lengths) == (10 if split == "bench" else 8), "the bench alone is longer"
        assert all(5 <= len(turn.text.split()) <= 14 for script in scripts for turn in script.turns)


def test_scripts_survive_rows_and_pictures_carry_their_scene():
    for n, script in enumerate(PAIRS["rl"][:20]):
        assert row_to_script(script_to_row(script, n, "rl")) == script
        assert scene_of(script.turns[0].images[0].data) == scene_of_script(script)
    assert scene_of(b"not a picture") is None
