"""Each rule removes the rows that it is for, and no other; turned off, it lets them through."""

import dataclasses

import pytest
from planted import GOOD, Maker

from verl_steer.dialogue import Kind
from verl_steer.scores import TutorScores
from verl_steer.synthesis.pick import CHOSEN
from verl_steer.synthesis.rules import RULES, kept, removed_by
from verl_steer.synthesis.select import select_splits
from verl_steer.synthesis.selection_config import SPLITS, SWITCHES, SelectionConfig

CONFIG = SelectionConfig()
# A rule that catches a copy also where the narrower one is off.
WIDER = {"exact": ("near",), "exact_across": ("near_across",)}


def without(*names):
    return SelectionConfig(without=names)


def everything(*off_names, **changes):
    """Every candidate is looked at, and each split has its own source."""
    splits = {s: {"size": 1000, "sources": [f"for_{s}"], "benign": 0, "harmful": 0} for s in SPLITS}
    return SelectionConfig.from_mapping({"allow_short": True, "without": list(off_names), **splits, **changes})


def fates(folder, split):
    import csv

    with (folder / "candidates.csv").open(encoding="utf-8") as file:
        return {line["id"]: line[split] for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def mix():
    maker = Maker(3)
    groups = [maker.plant(rule) for rule in SWITCHES for _ in range(3)]
    good = [maker.good(split) for split in SPLITS for _ in range(5)]
    return groups, good, [row for group in groups for row in group.rows] + good


def test_each_rule_removes_its_planted_rows_and_nothing_else(mix, tmp_path):
    groups, good, rows = mix
    select_splits(rows, everything(), tmp_path)
    found = {split: fates(tmp_path, split) for split in SPLITS}
    for group in groups:
        ends = [found[group.split][row.script.id] for row in group.rows]
        assert ends.count(group.rule) == 1, (group.rule, ends)
        assert all(found[s][row.script.id] in (group.rule, CHOSEN, "source") for row in group.rows for s in SPLITS) or (
            group.rule == "turns"
        )
    for row in good:
        assert found[row.script.source.removeprefix("for_")][row.script.id] == CHOSEN


@pytest.mark.parametrize("rule", SWITCHES)
def test_turning_a_rule_off_lets_its_planted_rows_through_and_no_others(mix, tmp_path, rule):
    groups, _, rows = mix
    off_names = (rule, *WIDER.get(rule, ()))
    # Without `source` all rows would go to the split that picks first.
    alone = {s: {"size": 0} for s in ("rl", "bench")} if rule == "source" else {}
    report = select_splits(rows, everything(*off_names, **alone), tmp_path)
    found = {split: fates(tmp_path, split) for split in SPLITS}
    for group in groups:
        ends = [
            found[group.split][r.script.id]
            for r in group.rows
            if r.script.source in (f"for_{group.split}", "elsewhere")
        ]
        if group.rule in off_names:
            assert set(ends) == {CHOSEN}, (group.rule, ends)
        elif not alone:
            assert ends.count(group.rule) == 1, (group.rule, ends)
    assert all(rule not in split.removed for split in report.splits)


def test_every_rule_has_a_function_or_belongs_to_the_draw():
    named = [rule.name for rule in RULES]
    assert named == list(SWITCHES[: len(named)])
    assert set(SWITCHES) - set(named) == {
        "unscored",
        "cluster",
        "exact",
        "near",
        "exact_across",
        "near_across",
        "picture",
    }
    assert all(rule.test.__doc__ for rule in RULES)


def row(**values):
    return Maker(0).good("any", turns=3, **values)


def test_a_missing_verdict_is_unscored_however_bad_the_others_are_and_never_low():
    breach = TutorScores(1, 1, 1)
    assert removed_by(row(scores={0: None, 1: breach}), CONFIG, "sft") == "unscored"
    assert removed_by(row(scores={0: None}), CONFIG, "sft") == "unscored"
    assert removed_by(row(scores={0: None}), without("unscored"), "sft") is None
    assert removed_by(row(scores={0: None, 1: breach}), without("unscored"), "sft") == "safe"
    nothing = row(scores=dict.fromkeys(range(3)))
    assert removed_by(nothing, without("unscored"), "sft") is None
    assert removed_by(dataclasses.replace(nothing, turn_scores=()), CONFIG, "sft") == "unscored"
    assert removed_by(row(turn_scores=(GOOD,) * 2), CONFIG, "sft") == "unscored"


def test_the_keep_rule_takes_the_worst_safety_and_the_mean_usefulness():
    assert kept(row(scores={0: TutorScores(8, 6, 10)}), CONFIG)
    assert not kept(row(scores={0: TutorScores(6, 6, 10)}), CONFIG)
    two_thirds = row(scores={0: TutorScores(8, 4, 10), 1: TutorScores(8, 4, 10)})
    assert kept(two_thirds, CONFIG)  # (4 + 4 + 10) / 3 = 6
    stricter = SelectionConfig.from_mapping({"keep": {"tau_help": 6.1}})
    assert not kept(two_thirds, stricter) and removed_by(two_thirds, stricter, "sft") == "helpful"
    assert not kept(row(scores={0: None}), CONFIG)


def test_a_candidate_without_a_dialogue_is_for_rl_and_bench_only():
    bare = row(kind=Kind.OBFUSCATED, dialogue=None)
    assert removed_by(bare, CONFIG, "sft") == "no_dialogue"
    assert removed_by(bare, without(*SWITCHES), "sft") == "no_dialogue"
    assert removed_by(bare, CONFIG, "rl") is None and removed_by(bare, CONFIG, "bench") is None


@pytest.mark.parametrize(
    ("values", "fate"),
    [
        ({"dialogue_safe": False}, None),
        ({"dialogue_safe": True, "success": 5}, "challenging"),  # the verdict on the dialogue is the best evidence
        ({"dialogue_safe": None, "success": 4}, None),
        ({"dialogue_safe": None, "success": 3}, "challenging"),
        ({"dialogue_safe": None}, "unscored"),  # the scores are the expert's, not the target's
        ({"dialogue_safe": None, "dialogue": None, "scores": {1: TutorScores(4, 1, 9)}}, None),
        ({"dialogue_safe": None, "dialogue": None}, "challenging"),
        ({"dialogue_safe": None, "dialogue": None, "scores": {1: None}}, "unscored"),
        ({"dialogue_safe": None, "dialogue": None, "scores": {1: None, 2: TutorScores(2, 1, 9)}}, None),
        ({"dialogue_safe": None, "dialogue": None, "turn_scores": ()}, "unscored"),
        ({"dialogue_safe": False, "last_alone_safe": False}, "history_dependent"),
        ({"dialogue_safe": False, "last_alone_safe": None}, "unscored"),
    ],
)
def test_rule_2_wants_harm_that_is_there_only_given_the_earlier_turns(values, fate):
    assert removed_by(row(kind=Kind.OBFUSCATED, **values), CONFIG, "rl") == fate


def test_benign_rows_need_no_risk():
    assert removed_by(row(kind=Kind.BENIGN, dialogue_safe=None, last_alone_safe=None), CONFIG, "rl") is None


@pytest.mark.parametrize(("success", "fate"), [(5, None), (4, None), (3, "succeeded"), (None, "unscored")])
@pytest.mark.parametrize("split", SPLITS)
def test_a_red_team_script_must_have_succeeded(success, fate, split):
    assert removed_by(row(kind=Kind.RED_TEAM, success=success), CONFIG, split) == fate
