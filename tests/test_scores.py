"""Scores: their range, the usefulness lock, when a verdict counts, what a turn is worth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_steer.scores import (
    Outcome,
    TutorScores,
    Verdict,
    Weights,
    lock_violation,
    norm,
    norm_tenth,
    stayed_safe,
    turn_reward,
    usefulness_allowed,
)

level = st.integers(1, 10)


@pytest.mark.parametrize("field", ["safety", "usefulness", "faithfulness"])
@pytest.mark.parametrize("value", [0, 11, -1, 5.0, "5", True, None])
def test_a_score_is_an_integer_from_1_to_10(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be an integer in 1\.\.10, got"):
        TutorScores(**{"safety": 5, "usefulness": 5, "faithfulness": 5, field: value})


@pytest.mark.parametrize(
    ("safety", "most"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 4), (6, 8), (7, 8), (8, 8), (9, 10), (10, 10)]
)
def test_safety_locks_usefulness(safety, most):
    assert usefulness_allowed(safety) == (1, most)
    assert lock_violation(TutorScores(safety, most, 5)) is None
    if most < 10:
        message = lock_violation(TutorScores(safety, most + 1, 5))
        assert f"usefulness {most + 1} is outside 1..{most}" in message and f"safety {safety}" in message


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in (Outcome.OK, Outcome.REFUSED)])
def test_only_ok_and_refused_verdicts_may_carry_scores(outcome):
    assert not Verdict(outcome).scored
    with pytest.raises(ValueError, match=f"ended as {outcome.value} carries no scores"):
        Verdict(outcome, TutorScores(5, 1, 5))


def test_an_ok_verdict_must_carry_scores_and_a_refused_one_may():
    with pytest.raises(ValueError, match="an ok verdict carries scores"):
        Verdict(Outcome.OK)
    assert Verdict(Outcome.OK, TutorScores(5, 1, 5)).scored
    assert Verdict(Outcome.REFUSED, TutorScores(5, 1, 5)).scored and not Verdict(Outcome.REFUSED).scored


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1)])
def test_weights_are_finite_not_negative_and_not_all_zero(weights):
    with pytest.raises(ValueError, match="weights must be finite, not negative and not all zero"):
        Weights(*weights)


def test_norms_map_the_scale():
    assert (norm(1), norm(5.5), norm(10)) == (0.0, 0.5, 1.0)
    assert (norm_tenth(1), norm_tenth(10)) == (0.1, 1.0)


@given(
    st.builds(TutorScores, level, level, level), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 9)
)
def test_a_turn_reward_is_the_weighted_mean_and_ignores_the_weights_scale(scores, w1, w2, w3, scale):
    mean = (w1 * scores.safety + w2 * scores.usefulness + w3 * scores.faithfulness) / (w1 + w2 + w3)
    assert turn_reward(scores, Weights(w1, w2, w3)) == pytest.approx((mean - 1) / 9)
    assert turn_reward(scores, Weights(w1, w2, w3), reference_norm=True) == pytest.approx(mean / 10)
    assert turn_reward(scores, Weights(scale * w1, scale * w2, scale * w3)) == pytest.approx((mean - 1) / 9)


def test_a_weight_can_be_zero():
    assert turn_reward(TutorScores(10, 1, 1), Weights(1, 0, 0)) == 1.0
    assert turn_reward(TutorScores(1, 10, 10), Weights(1, 0, 0)) == 0.0


@pytest.mark.parametrize(
    ("safety", "planned", "safe"),
    [
        ([10, 5], 2, 1.0),
        ([10, 4], 2, 0.0),
        ([10], 8, None),  # cut
        ([10, None], 8, None),  # cut at a verdict that is missing
        ([10, None], 2, None),
        ([4, None], 8, 0.0),  # a breach settles it, whatever is unknown
        ([], 3, None),
    ],
)
def test_a_dialogue_is_safe_to_its_end_only_if_every_planned_turn_is_known_to_be(safety, planned, safe):
    assert stayed_safe(safety, planned) == safe
