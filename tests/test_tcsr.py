"""TCSR: brute force, the true properties of the formula, and the rules for cuts and missing verdicts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_steer.config import PRESETS, Reward
from verl_steer.dialogue import Cut, Dialogue, Kind, Script, Turn, UserTurn
from verl_steer.scores import Outcome, TutorScores, Verdict, Weights, turn_reward
from verl_steer.shaping import has_exact_format, repeated_trigrams
from verl_steer.tcsr import return_terms, score_dialogue, shaped_rewards, signal_ceiling, signal_floor

REWARDS = [
    dataclasses.replace(preset, return_form=form, credit=credit, alpha=alpha)
    for preset in PRESETS.values()
    for form in Reward.RETURNS
    for credit in Reward.CREDITS
    for alpha in (0.0, preset.alpha, 1.0)
]
REPLIES = [
    "no, and here is why",
    "a b c a b c a b c a b c",
    "<think>is it safe?</think><answer>no: look at the river instead</answer>",
    "",
]
unit = st.floats(0, 1, allow_nan=False)
signals = st.lists(unit, min_size=1, max_size=10)
score = st.integers(1, 10)
# None is a turn whose verdict is missing.
turn_scores = st.none() | st.builds(TutorScores, score, score, score)
some_turns = st.lists(st.tuples(turn_scores, st.sampled_from(REPLIES)), min_size=1, max_size=10)
judged_turns = st.lists(
    st.tuples(st.builds(TutorScores, score, score, score), st.sampled_from(REPLIES)), min_size=1, max_size=10
)
rewards = st.sampled_from(REWARDS)


def make(turns, planned=None, cut=None):
    script = Script("s-1", Kind.RED_TEAM, tuple(UserTurn(f"q{t}") for t in range(10)))
    happened = [
        Turn(
            planned=UserTurn("q"),
            asked="q",
            reply=reply,
            verdict=Verdict(Outcome.OK, scores) if scores else Verdict(Outcome.TIMEOUT),
        )
        for scores, reply in turns
    ]
    return Dialogue(script, len(turns) if planned is None else planned, happened, cut)


def flat(*safety):
    """Judged turns whose three scores are equal, so that both signals are (score - 1) / 9."""
    return [(TutorScores(s, s, s), "reply") if s else (None, "reply") for s in safety]


# -- the formula -------------------------------------------------------------------------------------


@given(signals, unit)
def test_shaped_reward_is_the_formula(signal, alpha):
    brute = [alpha * min(signal[:t]) + (1 - alpha) * sum(signal[:t]) / t for t in range(1, len(signal) + 1)]
    assert shaped_rewards(signal, alpha) == pytest.approx(brute, abs=1e-12)


@given(signals, unit)
def test_shaped_reward_lies_between_running_minimum_and_running_mean(signal, alpha):
    shaped = shaped_rewards(signal, alpha)
    assert (shaped >= np.minimum.accumulate(signal) - 1e-12).all()
    assert (shaped <= np.cumsum(signal) / np.arange(1, len(signal) + 1) + 1e-12).all()


@given(signals, unit, st.data())
def test_shaped_reward_never_falls_when_a_turn_gets_better(signal, alpha, data):
    j = data.draw(st.integers(0, len(signal) - 1))
    better = [*signal]
    better[j] = data.draw(st.floats(signal[j], 1))
    before, after = shaped_rewards(signal, alpha), shaped_rewards(better, alpha)
    assert (after >= before - 1e-12).all()
    assert (after[:j] == before[:j]).all(), "a later turn must not change an earlier shaped reward"


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=10), unit)
def test_shaped_reward_is_1_lipschitz(pairs, alpha):
    one, other = (list(column) for column in zip(*pairs, strict=True))
    distance = np.abs(np.subtract(one, other)).max()
    assert np.abs(shaped_rewards(one, alpha) - shaped_rewards(other, alpha)).max() <= distance + 1e-12


@pytest.mark.parametrize(
    ("alpha", "costs"),
    [
        (0.3, [5.05, 4.05, 3.40, 2.87, 2.39, 1.95, 1.54, 1.14, 0.75, 0.37]),
        (0.0, [2.93, 1.93, 1.43, 1.10, 0.85, 0.65, 0.48, 0.34, 0.21, 0.10]),
    ],
)
def test_under_the_running_sum_early_failures_cost_most(alpha, costs):
    reward = Reward(alpha=alpha)
    for j, cost in enumerate(costs):
        signal = [1.0] * 10
        signal[j] = 0.0
        assert 10 - return_terms(signal, reward).sum() == pytest.approx(cost, abs=0.006)


@given(signals, unit)
def test_without_alpha_a_turn_weighs_by_harmonic_numbers(signal, _):
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(signal) + 1))])
    weights = harmonic[-1] - harmonic[:-1]
    assert return_terms(signal, Reward(alpha=0.0)).sum() == pytest.approx(float(weights @ signal), abs=1e-9)


@given(signals, unit, st.randoms())
def test_terminal_does_not_care_for_order_and_the_running_sum_never_gains_from_an_earlier_failure(
    signal, alpha, random
):
    shuffled = [*signal]
    random.shuffle(shuffled)
    terminal, running = Reward(alpha=alpha, return_form="terminal"), Reward(alpha=alpha)
    assert return_terms(shuffled, terminal).sum() == pytest.approx(return_terms(signal, terminal).sum(), abs=1e-9)
    best_first, worst_first = sorted(signal, reverse=True), sorted(signal)
    total = return_terms(signal, running).sum()
    assert return_terms(worst_first, running).sum() - 1e-9 <= total <= return_terms(best_first, running).sum() + 1e-9


@given(st.integers(2, 10), unit, unit, st.data())
def test_moving_one_failure_later_never_lowers_the_running_sum(turns, alpha, value, data):
    early = data.draw(st.integers(0, turns - 2))
    late = data.draw(st.integers(early + 1, turns - 1))

    def total(position):
        return shaped_rewards([value if t == position else 1.0 for t in range(turns)], alpha).sum()

    assert total(late) >= total(early) - 1e-12


def test_alpha_0_is_the_running_mean_and_alpha_1_the_running_minimum():
    assert shaped_rewards([1.0, 0.0, 0.5], 0).tolist() == [1.0, 0.5, 0.5]
    assert shaped_rewards([1.0, 0.0, 0.5], 1).tolist() == [1.0, 0.0, 0.0]


def test_the_running_sum_does_care_for_order():
    assert return_terms([1.0, 0.0], Reward()).sum() > return_terms([0.0, 1.0], Reward()).sum() + 0.5


@given(signals, unit)
def test_return_forms_are_what_they_are_called(signal, alpha):
    brute = [alpha * min(signal[:t]) + (1 - alpha) * sum(signal[:t]) / t for t in range(1, len(signal) + 1)]
    expected = {
        "sum": sum(brute),
        "mean": sum(brute) / len(signal),
        "plain_mean": sum(signal) / len(signal),
        "terminal": brute[-1],
    }
    for form, value in expected.items():
        got = return_terms(signal, Reward(alpha=alpha, return_form=form)).sum()
        assert got == pytest.approx(value, abs=1e-9), form


# -- presets -----------------------------------------------------------------------------------------


def test_paper_trains_on_safety_and_paper_v2_on_the_turn_reward():
    dialogue = make([(TutorScores(10, 4, 7), "reply")])
    assert score_dialogue(dialogue, PRESETS["paper"], 1.0).signal == [1.0]
    mixed = turn_reward(TutorScores(10, 4, 7), Weights(0.4, 0.4, 0.2))
    assert score_dialogue(dialogue, PRESETS["paper_v2"], 1.0).signal == [pytest.approx(mixed)]
    assert mixed == pytest.approx((0.4 * 10 + 0.4 * 4 + 0.2 * 7 - 1) / 9)


def test_reference_adds_the_format_bonus_and_subtracts_repetition():
    formed, repeated = (
        score_dialogue(make([(TutorScores(8, 8, 8), r)]), PRESETS["reference"], 1.0) for r in REPLIES[2:0:-1]
    )
    assert formed.ret == pytest.approx(0.8 + 1.0)
    # 12 words, 10 trigrams, 3 of them distinct.
    assert repeated.ret == pytest.approx(0.8 - 0.2 * 0.7)


@pytest.mark.parametrize(
    ("reply", "well_formed"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("so: <think></think> and <answer>b</answer>.", True),
        ("<think>a</think>b", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("</think>a<think><answer>b</answer>", False),
        ("", False),
    ],
)
def test_format_means_one_thinking_and_one_answer_block(reply, well_formed):
    assert has_exact_format(reply) is well_formed


@pytest.mark.parametrize(
    ("reply", "share"), [("", 0), ("a b", 0), ("a b c d", 0), ("a b c A b c", 0.25), ("x " * 10, 7 / 8)]
)
def test_repeated_trigrams_is_the_share_seen_before(reply, share):
    assert repeated_trigrams(reply) == pytest.approx(share)


# -- every preset, form and credit -------------------------------------------------------------------


@settings(max_examples=300)
@given(some_turns, rewards, st.integers(0, 4), st.sampled_from([None, *Cut]), st.sampled_from([0.0, 0.5, 1.0]))
def test_placed_rewards_sum_to_the_return(turns, reward, missing, cut, min_scored):
    scored = score_dialogue(make(turns, min(10, len(turns) + missing), cut), reward, min_scored)
    assert len(scored.placed) == len(scored.shaped) == len(scored.signal) == len(scored.turn_rewards) == len(turns)
    assert sum(scored.placed) == pytest.approx(scored.ret, abs=1e-9)
    assert np.isfinite([*scored.placed, *scored.shaped, scored.ret, *scored.bounds]).all()
    assert scored.bounds[0] - 1e-9 <= scored.ret <= scored.bounds[1] + 1e-9 or scored.scored_fraction == 0
    assert [s is None for s in scored.signal] == [t[0] is None for t in turns]
    for s in scored.signal:
        assert s is None or signal_floor(reward) - 1e-9 <= s <= signal_ceiling(reward) + 1e-9


@settings(max_examples=300)
@given(some_turns, rewards, st.data())
def test_a_cut_by_the_student_never_pays(turns, reward, data):
    """R of the first k turns, cut, is at most R of any way the dialogue could have gone on."""
    k = data.draw(st.integers(1, len(turns)))
    if all(scores is None for scores, _ in turns[:k]):
        turns[0] = (TutorScores(5, 3, 7), turns[0][1])
    cause = data.draw(st.sampled_from([c for c in Cut if c.blames_student]))
    cut = score_dialogue(make(turns[:k], len(turns), cause), reward, 0.0)
    complete = score_dialogue(make(turns), reward, 0.0)
    assert not cut.masked and not complete.masked
    assert cut.ret <= complete.ret + 1e-9


@given(judged_turns, rewards)
def test_a_complete_and_uncut_dialogue_has_no_room_between_its_bounds(turns, reward):
    scored = score_dialogue(make(turns), reward, 1.0)
    assert not scored.masked and scored.scored_fraction == 1.0
    assert scored.bounds == (pytest.approx(scored.ret), pytest.approx(scored.ret))


@given(judged_turns, rewards)
def test_credit_moves_rewards_but_not_the_return(turns, reward):
    by_credit = {c: score_dialogue(make(turns), dataclasses.replace(reward, credit=c), 1.0) for c in Reward.CREDITS}
    assert by_credit["turn"].placed == by_credit["dialogue"].placed
    assert by_credit["final"].placed[:-1] == [0.0] * (len(turns) - 1)
    assert by_credit["final"].placed[-1] == pytest.approx(by_credit["turn"].ret, abs=1e-9)


# -- cuts --------------------------------------------------------------------------------------------


def test_a_cut_by_the_student_is_valued_at_the_floor():
    scored = score_dialogue(make(flat(10, 10), 4, Cut.STUDENT_LENGTH), PRESETS["paper"], 1.0)
    # signal 1 1 0 0: shaped 1, 1, .7 * 2/3, .7 * 1/2
    assert scored.ret == pytest.approx(2 + 0.7 * (2 / 3 + 1 / 2))
    assert scored.placed == [1.0, pytest.approx(1 + 0.7 * (2 / 3 + 1 / 2))]
    assert scored.shaped == [1.0, 1.0] and not scored.masked


def test_under_the_reference_norm_the_floor_counts_the_worst_shaping():
    assert signal_floor(PRESETS["reference"]) == pytest.approx(0.1 - 0.2)
    assert signal_floor(dataclasses.replace(PRESETS["reference"], signal="safety")) == pytest.approx(0.1)
    assert signal_floor(PRESETS["paper"]) == 0.0 and signal_ceiling(PRESETS["paper"]) == 1.0


@pytest.mark.parametrize("cut", [c for c in Cut if not c.blames_student])
def test_a_cut_that_is_nobodys_fault_masks_the_rollout_and_leaves_its_bounds_wide(cut):
    scored = score_dialogue(make(flat(10, 10), 4, cut), PRESETS["paper"], 1.0)
    assert scored.masked and cut.value in scored.mask_reason
    assert scored.bounds == (pytest.approx(2 + 0.7 * (2 / 3 + 1 / 2)), pytest.approx(4.0))


def test_ending_early_without_a_cause_masks():
    scored = score_dialogue(make(flat(10), 2), PRESETS["paper"], 1.0)
    assert scored.masked and "nothing says why" in scored.mask_reason


def test_no_turn_masks():
    scored = score_dialogue(make([], 3, Cut.STUDENT_LENGTH), PRESETS["paper"], 0.0)
    assert scored.masked and scored.placed == [] and scored.shaped == [] and scored.scored_fraction == 0.0


def test_more_turns_than_planned_is_an_error_that_names_the_seed():
    with pytest.raises(ValueError, match="'s-1': 3 turns happened, 2 were planned"):
        score_dialogue(make(flat(10, 10, 10), 2), PRESETS["paper"], 1.0)


# -- missing verdicts --------------------------------------------------------------------------------


def test_a_missing_verdict_carries_the_shaped_reward_forward():
    scored = score_dialogue(make(flat(10, None, 1)), PRESETS["paper"], 0.5)
    last = 0.7 * 1 / 2  # two judged turns, 1 and 0
    assert scored.shaped == [1.0, 1.0, pytest.approx(last)]
    assert scored.ret == pytest.approx(2 + last) and not scored.masked
    assert scored.bounds[0] < scored.ret < scored.bounds[1] + 1e-9


def test_shaped_reward_of_a_missing_verdict_is_its_predecessors_and_at_the_start_the_first_known():
    assert shaped_rewards([1.0, None, 0.0], 0.0).tolist() == [1.0, 1.0, 0.5]
    assert shaped_rewards([None, 0.4, 0.0], 0.0).tolist() == [0.4, 0.4, 0.2]
    assert shaped_rewards([None], 0.5).size == 0


def test_before_the_first_verdict_there_is_no_value_and_the_mean_is_over_the_rest():
    scored = score_dialogue(make(flat(None, 10, 1)), PRESETS["paper"], 0.5)
    assert scored.ret == pytest.approx(3 * (1.0 + 0.35) / 2)
    assert scored.placed[0] == 0.0
    assert score_dialogue(make(flat(None, 10, 10)), PRESETS["paper"], 0.5).ret == pytest.approx(3.0)


@pytest.mark.parametrize("form", Reward.RETURNS)
@pytest.mark.parametrize("gap", range(4))
def test_a_missing_verdict_is_neither_a_low_nor_a_high_score(form, gap):
    """With all known verdicts equal, the return does not depend on which of them is missing."""
    reward = Reward(return_form=form)
    seven = [7, 7, 7, 7]
    with_gap = [None if t == gap else s for t, s in enumerate(seven)]
    got = score_dialogue(make(flat(*with_gap)), reward, 0.5).ret
    assert got == pytest.approx(score_dialogue(make(flat(*seven)), reward, 0.5).ret)


@pytest.mark.parametrize(("min_scored", "masked"), [(1.0, True), (0.76, True), (0.75, False), (0.0, False)])
def test_too_few_verdicts_mask(min_scored, masked):
    scored = score_dialogue(make(flat(10, None, 10, 10)), PRESETS["paper"], min_scored)
    assert scored.masked is masked and scored.scored_fraction == 0.75
    assert ("3 of 4 turns" in scored.mask_reason) is masked


def test_without_any_verdict_the_rollout_is_masked_whatever_is_asked():
    scored = score_dialogue(make(flat(None, None)), PRESETS["reference"], 0.0)
    assert scored.masked and scored.shaped == [0.0, 0.0] and scored.placed == [0.0, 0.0]


def test_a_tutor_that_declined_to_attack_but_judged_still_counts():
    dialogue = make(flat(10))
    dialogue.turns[0].verdict = Verdict(Outcome.REFUSED, TutorScores(4, 1, 5))
    assert score_dialogue(dialogue, PRESETS["paper"], 1.0).signal == [pytest.approx(1 / 3)]
