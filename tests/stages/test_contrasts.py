"""Differences over seeds against values worked out by hand."""

import json
import math

import numpy as np
import pytest
from stages_results import result

from verl_steer.bench import survival
from verl_steer.stages.contrasts import FAMILY, Contrast, Runs, hacked, mean_interval, standardised, survival_of
from verl_steer.stages.evidence import page
from verl_steer.stages.result import ResultError, Risk, flips_of

FULL_SFT = Contrast("sft", "full", "joint")


SEEDS = range(10)


def runs(values: dict[str, dict[int, float]], seeds=SEEDS, **more) -> Runs:
    return Runs(
        [result(s, arm, v, **more) for arm, by_seed in values.items() for s, v in by_seed.items()], tuple(seeds)
    )


def test_a_paired_difference_has_the_textbook_interval_and_the_exact_p():
    """Differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(0.975, 2) = 4.302653, one-sided t(0.95, 2) = 2.919986; p = 2/2^3."""
    found = runs({"sft": {0: 0.2, 1: 0.3, 2: 0.1}, "full": {0: 0.3, 1: 0.5, 2: 0.4}}).contrast(FULL_SFT)
    assert found.seeds == (0, 1, 2) and found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert found.value - found.lower_bound == pytest.approx(2.919986 * 0.1 / 3**0.5, abs=1e-6)
    assert found.p == pytest.approx(0.25)


def test_pairing_is_by_seed_and_not_by_mean():
    """The seeds differ by much more than the arms: unpaired, nothing could be seen."""
    found = runs({"sft": {0: 0.1, 1: 0.5, 2: 0.9}, "full": {0: 0.15, 1: 0.55, 2: 0.95}}).contrast(FULL_SFT)
    assert found.low == pytest.approx(0.05) == found.high


def test_only_seeds_with_both_arms_count_and_one_seed_has_no_interval():
    found = runs({"sft": {0: 0.2, 1: 0.9}, "full": {0: 0.3, 2: 0.9}}).contrast(FULL_SFT)
    assert found.seeds == (0,) and found.value == pytest.approx(0.1)
    assert math.isinf(found.low) and math.isinf(found.high) and found.p == 1.0
    none = runs({"sft": {0: 0.2}}).contrast(FULL_SFT)
    assert none.seeds == () and math.isnan(none.value) and math.isnan(none.p)


def test_holm_is_over_all_four_even_where_some_are_missing():
    """Ten equal differences: p = 2/1024 each. Over four, the smallest is multiplied by four, whoever else is there."""
    full = dict.fromkeys(range(10), 0.5)
    worse = dict.fromkeys(range(10), 0.4)
    one = runs({"full": full, "yoked": worse}).family(FAMILY)
    assert [f.contrast.first for f in one if f.seeds] == ["yoked"]
    assert one[-1].p == pytest.approx(2 / 1024) and one[-1].holm == pytest.approx(8 / 1024)
    both = runs({"full": full, "yoked": worse, "plain_mean": worse}).family(FAMILY)
    assert [f.holm for f in both if f.seeds] == [pytest.approx(8 / 1024)] * 2
    assert all(math.isnan(f.holm) for f in both if not f.seeds)


def test_what_is_not_of_one_experiment_is_refused_by_name():
    for change in ({"world_hash": "other"}, {"bench_sha256": "c" * 64}, {"sizes": {"rl_steps": 61}}):
        with pytest.raises(ResultError, match=r"seed0-sft and seed1-full are not of one experiment"):
            Runs([result(0, "sft"), result(1, "full", **change)], (0, 1))
    with pytest.raises(ResultError, match="config_hash"):
        Runs([result(0, "sft"), result(1, "sft", config_hash="x")], (0, 1))
    Runs([result(0, "sft"), result(7, "sft", world_hash="other")], (0, 1))  # seed 7 does not count here
    with pytest.raises(ResultError, match="no arm 'fulll'"):
        Runs([result(0, "fulll")], (0,))


def test_missing_runs_are_listed_by_arm():
    missing = runs({"sft": {0: 0.2, 1: 0.2}, "full": {1: 0.2}}, seeds=(0, 1)).missing
    assert "sft" not in missing and missing["full"] == [0] and missing["yoked"] == [0, 1]


def test_survival_tables_are_summed_over_seeds():
    """Ten dialogues a seed; 4 and 6 of them fail in turn 2: 10 of 20 are left."""
    found = Runs([result(0, "sft", failed=4), result(1, "sft", failed=6)], (0, 1))
    pooled = found.pooled("sft", "harmful")
    assert pooled == Risk(at_risk=[20, 20, 10, 10], failed=[0, 10, 0, 0])
    assert survival_of(pooled) == [1.0, 0.5, 0.5, 0.5]
    assert found.pooled("full", "harmful") is None


def test_a_tutor_s_score_that_rises_alone_is_called_reward_hacking():
    def pair(tutor: float, oracle: float) -> Runs:
        before, after = (
            {"harmful": 0.5, "benign": 0.9, "tutor": 0.7, "gap": 0.0},
            {"harmful": oracle, "benign": 0.9, "tutor": tutor, "gap": 0.1},
        )
        return Runs([result(0, "sft", tutor=before), result(0, "full", tutor=after)], (0,))

    assert hacked(pair(0.8, 0.5)) is True
    assert hacked(pair(0.8, 0.6)) is False
    gaps = [
        result(s, arm, tutor={"harmful": h, "benign": 0.9, "tutor": t, "gap": g})
        for s in range(3)
        for arm, h, t, g in (("sft", 0.5, 0.7, 0.0), ("full", 0.6, 0.9, 0.1 + 0.001 * s))
    ]
    assert hacked(Runs(gaps, SEEDS)) is True, "the oracle's rose, too, but surely less"
    assert hacked(runs({"sft": {0: 0.1}})) is None


def test_the_mean_over_seeds_has_a_t_interval():
    centre, low, high = mean_interval({0: 0.1, 1: 0.2, 2: 0.3})
    assert (centre, high - centre) == (pytest.approx(0.2), pytest.approx(4.302653 * 0.1 / 3**0.5, abs=1e-6))
    assert low == pytest.approx(2 * centre - high)


def test_a_result_whose_training_began_with_another_machine_s_student_is_named():
    kept = [
        result(0, "base", student="b"),
        result(0, "sft", start="b", student="s"),
        result(0, "full", start="s", student="f"),
        result(0, "no_bootstrap", start="b"),
    ]
    assert Runs(kept, (0, 1)).began == {"seed0-sft": True, "seed0-full": True, "seed0-no_bootstrap": True}
    other = [result(0, "yoked", start="t"), result(1, "full", start="t"), result(0, "script")]  # 1: nothing to compare
    began = Runs([*kept, *other], (0, 1)).began
    assert (began["seed0-yoked"], began["seed1-full"], began["seed0-script"]) == (False, None, None)
    assert "3 of 6 trained runs, 2 do not say; **others: seed0-yoked**." in page(Runs([*kept, *other], (0, 1)))
    assert "Began with the weights of their seed's base or SFT result, to the bit: 3 of 3 trained runs." in page(
        Runs(kept, (0, 1))
    )
    unsaid = [result(0, "base"), result(0, "sft"), result(0, "full")]
    assert "to the bit: 0 of 2 trained runs, 2 do not say." in page(Runs(unsaid, (0, 1))), "silence is no agreement"


def test_flips_of_other_weights_are_refused(tmp_path):
    """The arm was trained again, and the figures of the student before lay there still."""
    path = tmp_path / "flips.json"
    turned = {"seed": 0, "picture": {"right": 3, "flipped": 2}}
    path.write_text(json.dumps(turned))
    assert flips_of(path, "a")["picture"].flipped == 2, "an older file does not say whose figures it holds"
    path.write_text(json.dumps({**turned, "weights": "a"}))
    assert flips_of(path, "a")["picture"].right == 3
    with pytest.raises(ResultError, match=r"is about other weights \(a\) than the arm's \(b\); remove it"):
        flips_of(path, "b")


def test_standardised_survival_is_an_average_over_those_that_reach_a_turn():
    """Ten dialogues of two turns, five failing in the second; twenty of four, five failing in the first and none after it.

    Turn 1: (10 * 1 + 20 * .75) / 30, turn 2: (10 * .5 + 20 * .75) / 30; turns 3 and 4 are the long ones' alone.
    """
    short = Risk(at_risk=[10, 10], failed=[0, 5])
    long = Risk(at_risk=[20, 15, 15, 15], failed=[5, 0, 0, 0])
    gone = Risk(at_risk=[4, 0], failed=[4, 0])
    survival = {"harmful": long, "harmful:2": short, "harmful:4": long, "benign:2": gone}
    one = result(0, "full", survival=survival)
    assert standardised(one, "harmful") == pytest.approx([25 / 30, 20 / 30, 0.75, 0.75])
    assert standardised(one, "benign") == pytest.approx([0.0, 0.0])
    assert standardised(one) == pytest.approx([25 / 34, 20 / 34, 0.75, 0.75])
    found = runs({"full": {0: 0.5}}, survival=survival)
    assert found.values("full", "safe_turns_alike") == {0: pytest.approx(45 / 34 + 1.5)}
    assert runs({"full": {0: 0.5}}, survival={}).values("full", "safe_turns_alike") == {}


def test_standardised_survival_of_tables_is_the_bench_s_own():
    """The same dialogues, once as tables of a result and once through `bench.survival.standardised`."""
    draw = np.random.default_rng(5)
    planned = draw.integers(3, 7, 80)
    harmlessness = np.where(
        np.arange(10)[None, :] < planned[:, None], draw.integers(1, 4, (80, 10)).astype(float), np.nan
    )
    duration, failed = survival.observe(harmlessness, planned)
    tables = {}
    for length in np.unique(planned):
        at_risk, lost = survival.counts(duration[planned == length], failed[planned == length], int(length))
        tables[f"harmful:{length}"] = Risk(at_risk=at_risk.astype(int).tolist(), failed=lost.astype(int).tolist())
    curve = survival.standardised(duration, failed, planned.astype(str), planned, int(planned.max()))
    assert standardised(result(0, "full", survival=tables)) == pytest.approx(curve.survival)
