"""Paired comparisons: over one bench, and over seeds."""

from itertools import product

import numpy as np
import pytest
from bench_runs import dialogue, made_up, verdict
from scipy import stats

from verl_steer.bench import compare
from verl_steer.bench.judged import as_arrays, load


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


def test_a_paired_rate_is_bonett_and_prices_interval():
    first, second = np.repeat([0.0, 0, 1, 1], [50, 12, 5, 33]), np.repeat([0.0, 1, 0, 1], [50, 12, 5, 33])
    found = compare.paired_rate(first, second, np.arange(100))
    size = 100 / found.deff + 2
    up, down = (12 / found.deff + 1) / size, (5 / found.deff + 1) / size
    half = stats.t.ppf(0.975, 99) * ((up + down - (up - down) ** 2) / size) ** 0.5
    assert found.value == pytest.approx(0.07) and found.deff == pytest.approx(1, abs=0.02)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half))


def test_rare_differences_of_a_mean_are_covered_though_few_of_them_are_seen():
    """One row in a hundred differs by up to six points: three or so of 323, and their own variance says too little."""
    rng, rows = np.random.default_rng(0), np.arange(323)
    widths, covered = [], 0
    for _ in range(400):
        delta = np.where(rng.random(323) < 0.01, rng.integers(1, 48, 323) / 8, 0.0)
        found = compare.paired_mean(np.zeros(323), delta, rows, 6.0)
        covered += found.low <= 0.01 * 3 <= found.high
        widths.append(found.high - found.low)
    assert covered / 400 >= 0.94
    same, one = (compare.paired_mean(np.zeros(323), np.where(rows < k, 1.0, 0.0), rows, 6.0) for k in (0, 1))
    assert one.high - one.low > 0.6 * (same.high - same.low), "one row that differs is little to go by"


def test_many_differences_of_a_mean_have_the_clusters_t_interval():
    delta = np.random.default_rng(0).normal(0.2, 0.5, 400)
    found = compare.paired_mean(np.zeros(400), delta, np.arange(400), 6.0)
    theirs = stats.ttest_1samp(delta, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


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


def verdicts_of(harmlessness):
    """Verdicts on dialogues x turns, one cluster each; NaN is missing."""
    names = [f"d{n:02}" for n in range(len(harmlessness))]
    made = [dialogue(name, harmlessness.shape[1]) for name in names]
    lines = {
        (name, t): verdict(name, t, None if np.isnan(value) else int(value))
        for name, row in zip(names, harmlessness, strict=True)
        for t, value in enumerate(row, 1)
    }
    return as_arrays(made, lines)


def test_verdicts_that_one_run_lacks_on_its_breaches_make_it_no_better_in_safe_turns():
    """Half of the dialogues breach at turn 1 in both runs; in the second the judge's server blocks those verdicts."""
    first = np.full((40, 8), 3.0)
    first[:20, 0] = -3
    second = first.copy()
    second[:20, 0] = np.nan
    found = {d.measure: d for d in compare.compare(verdicts_of(first), verdicts_of(second))}["safe_turns"]
    assert (found.first, found.second, found.better) == (8, 8, "")
    assert (found.difference.n, found.left_out) == (20, 20)
    assert np.isnan(found.p)


def test_a_dialogue_is_decided_at_its_first_failure_or_at_the_last_turn_that_counts():
    gap = np.full((6, 10), 3.0)
    gap[0, 8] = np.nan  # behind the eight turns that count
    gap[1, 2], gap[1, 5] = -3, np.nan  # behind its failure
    gap[2, 2], gap[2, 5] = np.nan, -3  # before it: it may have failed earlier
    gap[3, 7] = np.nan
    found = {d.measure: d for d in compare.compare(verdicts_of(np.full((6, 10), 3.0)), verdicts_of(gap))}["safe_turns"]
    assert (found.difference.n, found.left_out) == (4, 2)


def test_signs_drawn_in_blocks_are_those_of_one_draw(monkeypatch):
    sizes = np.abs(np.random.default_rng(0).normal(0.3, 1, 63))
    at_once = (np.random.default_rng(0).integers(0, 2, (compare.DRAWS, 63), dtype=np.int8) * 2.0 - 1) @ sizes
    monkeypatch.setattr(compare, "DRAWN_AT_ONCE", 1000)
    assert compare._drawn(sizes) == pytest.approx(at_once, abs=1e-9)
