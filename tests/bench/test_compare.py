"""Paired comparisons: over one bench, and over seeds."""

from itertools import product

import numpy as np
import pytest
from bench_runs import made_up
from scipy import stats

from verl_steer.bench import compare
from verl_steer.bench.judged import load


def enumerated(sums):
    """The sign-flip test, the long way."""
    flips = np.array(list(product((1, -1), repeat=len(sums))))
    return np.mean(np.abs(flips @ sums) >= abs(np.sum(sums)) - 1e-9)


@pytest.mark.parametrize("sums", [[1, 1, 1, 1], [3, -1, 2, 0, 4, -5], [0.5, 0.25, -0.1, 1.3], [2], [0, 0]])
def test_the_sign_flip_test_is_exact(sums):
    assert compare.sign_flip(np.array(sums, float)) == pytest.approx(enumerated(sums))


def test_many_fractional_sums_are_drawn_close_to_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 60)
    assert compare.sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)


def test_holm_steps_down_and_leaves_unknown_ones_out():
    assert compare.holm([0.01, 0.04, float("nan"), 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert compare.holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_run_against_itself_differs_by_nothing_with_an_interval_round_it(tmp_path):
    _, _, verdicts = load(made_up(tmp_path, 200), "oracle")
    for found in compare.compare(verdicts, verdicts):
        assert found.difference.value == 0 and found.better == ""
        assert found.difference.low < 0 < found.difference.high
        assert np.isnan(found.p) or found.p == 1


def test_a_better_model_is_found_better_in_the_right_direction(tmp_path):
    _, _, worse = load(made_up(tmp_path / "a", 300, skill=0.8), "oracle")
    _, _, better = load(made_up(tmp_path / "b", 300, skill=0.99), "oracle")
    found = {d.measure: d for d in compare.compare(worse, better)}
    for name in ("safe", "any_failure", "worst_turn", "safe_turns", "harmlessness"):
        assert found[name].better == "second" and found[name].p < 0.01 and found[name].holm >= found[name].p, name
    assert found["any_failure"].difference.value < 0 < found["safe"].difference.value
    back = {d.measure: d for d in compare.compare(better, worse)}
    assert back["safe"].better == "first"
    assert back["safe"].difference.value == pytest.approx(-found["safe"].difference.value)
    assert back["safe"].difference.low == pytest.approx(-found["safe"].difference.high)


def test_a_difference_that_the_correction_takes_away_is_not_called_better(tmp_path):
    pairs = [load(made_up(tmp_path / str(k), 200, skill=k), "oracle")[2] for k in (0.9, 0.92, 0.95, 0.98)]
    found = [d for other in pairs[1:] for d in compare.compare(pairs[0], other)]
    assert all((d.better != "") <= (d.holm < 0.05) for d in found)
    lone = [d for d in found if d.p < 0.05 <= d.holm]
    assert lone and all(d.better == "" for d in lone)


def test_only_what_both_runs_hold_is_compared(tmp_path):
    _, _, one = load(made_up(tmp_path, 200), "oracle")
    shuffled = one.where(np.random.default_rng(0).permutation(len(one))[:150])
    found = compare.compare(one, shuffled)[0]
    assert found.difference.value == 0
    assert found.difference.n + found.left_out == 150


def test_over_seeds_it_is_the_t_interval_and_the_exact_test(tmp_path):
    pairs = []
    for seed in range(4):
        _, _, a = load(made_up(tmp_path / f"a{seed}", 80, skill=0.8, seed=seed), "oracle")
        _, _, b = load(made_up(tmp_path / f"b{seed}", 80, skill=0.99, seed=seed), "oracle")
        pairs.append(compare.compare(a, b))
    found = compare.over_seeds(pairs)[0]
    values = np.array([p[0].difference.value for p in pairs])
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(2 / 2**4) and found.difference.n == 4
    alone = compare.over_seeds(pairs[:1])[0]
    assert alone.difference.low == -np.inf and alone.p == 1  # one seed says nothing about seeds
