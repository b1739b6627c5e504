"""Intervals of clustered rates, means and averages."""

import numpy as np
import pytest
from scipy import stats

from verl_steer.bench.intervals import average, clustered_wilson, mean, proportion, wilson


def test_without_clusters_it_is_wilsons_interval_with_students_quantile():
    found = proportion(np.repeat([1, 0], [70, 30]), np.arange(100))
    low, high = wilson(0.7, 100 / found.deff, stats.t.ppf(0.975, 99))
    assert (found.value, found.n, found.clusters) == (0.7, 100, 100)
    assert (found.low, found.high) == pytest.approx((float(low), float(high)))
    assert found.deff == pytest.approx(1, abs=0.02)


def test_wilson_is_the_score_interval_of_scipy():
    theirs = stats.binomtest(7, 50).proportion_ci(method="wilson")
    low, high = wilson(7 / 50, 50, stats.norm.ppf(0.975))
    assert (float(low), float(high)) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("outcome", [0, 1])
@pytest.mark.parametrize("clusters", [1, 2, 30])
def test_no_interval_has_zero_width(outcome, clusters):
    found = proportion(np.full(60, outcome), np.arange(60) % clusters)
    assert found.high - found.low > 0.05
    assert found.low <= outcome <= found.high


def test_dialogues_that_repeat_each_other_widen_the_interval():
    passed = np.arange(40) % 2
    alone = proportion(passed, np.arange(40))
    repeated = proportion(np.repeat(passed, 10), np.repeat(np.arange(40), 10))
    assert repeated.deff == pytest.approx(10, rel=0.2)
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_coverage_holds_with_clusters_where_the_plain_interval_fails():
    rng, sizes = np.random.default_rng(0), np.full(60, 10)
    for p in (0.1, 0.9):
        successes = rng.binomial(sizes, rng.beta(p * 9, (1 - p) * 9, (1000, 60)))
        rate, low, high, _ = clustered_wilson(successes, np.broadcast_to(sizes, successes.shape))
        plain = wilson(rate, 600, stats.norm.ppf(0.975))
        assert np.mean((low <= p) & (p <= high)) >= 0.93
        assert np.mean((plain[0] <= p) & (p <= plain[1])) < 0.9


def test_nothing_is_unknown_and_spans_the_range():
    found = proportion(np.zeros(0), np.zeros(0))
    assert np.isnan(found.value) and (found.low, found.high, found.n) == (0, 1, 0)
    assert (mean(np.zeros(0), np.zeros(0), -3, 3).low, mean(np.zeros(0), np.zeros(0), -3, 3).high) == (-3, 3)


def test_a_mean_far_from_the_ends_has_the_clusters_t_interval():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 200)
    found = mean(values, np.arange(200), -9, 9)
    half = stats.t.ppf(0.975, 199) * values.std(ddof=1) / 200**0.5
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)
    near = mean([3, 3, 3, 2.5, 3, 3], np.arange(6), -3, 3)
    assert near.high <= 3
    same = mean(np.full(50, 3.0), np.arange(50), -3, 3)
    assert same.high == 3 and 2 < same.low < 3


def test_an_average_is_unweighted_and_unknown_with_an_unknown_part():
    big = proportion(np.repeat([1, 0], [900, 100]), np.arange(1000))
    small = proportion(np.repeat([1, 0], [5, 5]), np.arange(10))
    both = average([big, small])
    assert both.value == pytest.approx(0.7)
    assert both.value - both.low == pytest.approx(
        (((big.value - big.low) ** 2 + (small.value - small.low) ** 2) ** 0.5) / 2
    )
    unknown = average([big, proportion(np.zeros(0), np.zeros(0))])
    assert np.isnan(unknown.value) and unknown.low < unknown.high
