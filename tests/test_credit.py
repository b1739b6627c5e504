"""Advantages: what they must be exactly, and what they must not depend on."""

import itertools

import numpy as np
import pytest

from verl_steer.credit import TurnBaseline, group_advantages, returns_to_go, situation, turn_advantages


def _turns(rewards, groups=None, past=None, prior=2.0, kinds=None, valid=None):
    n = len(rewards)
    return turn_advantages(
        rewards=rewards,
        signals=rewards,
        groups=groups or ["g"] * n,
        kinds=kinds or ["red_team"] * n,
        planned=[max(len(r) for r in rewards)] * n,
        valid=np.ones(n, bool) if valid is None else np.array(valid),
        past=past or TurnBaseline(),
        prior_strength=prior,
    )


def test_group_mean_is_over_valid_rollouts_only():
    returns = np.array([1.0, 3.0, 100.0, 5.0])
    got = group_advantages(returns, ["a", "a", "a", "b"], np.array([True, True, False, True]))
    assert got.tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_std_divides_by_the_groups_spread():
    got = group_advantages(np.array([0.0, 2.0]), ["a", "a"], np.array([True, True]), std=True)
    assert got == pytest.approx([-1 / np.sqrt(2), 1 / np.sqrt(2)], abs=1e-5)


def test_return_to_go():
    assert returns_to_go([1.0, 2.0, 3.0]).tolist() == [6.0, 5.0, 3.0]


def test_a_rollouts_own_rewards_never_enter_its_baseline():
    rng = np.random.default_rng(0)
    rewards = [list(rng.random(k)) for k in (3, 2, 3, 1)]
    before = _turns(rewards)
    changed = [list(r) for r in rewards]
    changed[0] = [x + 10 for x in changed[0]]
    after = _turns(changed)
    # b = G - A is untouched for rollout 0.
    baseline = returns_to_go(rewards[0]) - before[0]
    baseline_changed = returns_to_go(changed[0]) - after[0]
    assert baseline_changed == pytest.approx(baseline)


def test_without_a_past_the_sum_over_those_alive_is_zero():
    rng = np.random.default_rng(1)
    rewards = [list(rng.random(k)) for k in (4, 4, 2, 3)]
    advantages = _turns(rewards)
    for t in range(3):  # at turn 4 two are alive, at turn 3 three
        alive = [a[t] for a in advantages if len(a) > t]
        assert len(alive) > 1 and sum(alive) == pytest.approx(0.0, abs=1e-12)


def test_row_order_and_a_constant_per_turn_change_nothing():
    rng = np.random.default_rng(2)
    rewards = [list(rng.random(3)) for _ in range(4)]
    base = _turns(rewards)
    order = [2, 0, 3, 1]
    shuffled = _turns([rewards[i] for i in order])
    for position, i in enumerate(order):
        assert shuffled[position] == pytest.approx(base[i])
    shifted = _turns([[x + c for x, c in zip(r, (5.0, -1.0, 2.0), strict=True)] for r in rewards])
    for a, b in zip(base, shifted, strict=True):
        assert b == pytest.approx(a)


def test_alone_at_a_turn_gets_the_past_not_zero():
    past = TurnBaseline()
    batch = {"groups": ["g"], "kinds": ["red_team"], "planned": [2], "valid": np.array([True])}
    past.update(rewards=[[0.5, 0.25]], signals=[[0.5, 0.25]], **batch)
    got = turn_advantages(rewards=[[0.5, 1.0]], signals=[[0.5, 1.0]], past=past, **batch)
    assert got[0].tolist() == pytest.approx([1.5 - 0.75, 1.0 - 0.25])


def test_the_past_is_read_by_situation_and_falls_back_to_coarser_ones():
    past = TurnBaseline()
    for signal, value in (([0.9, 0.0], 1.0), ([0.1, 0.0], 3.0)):
        past.update([[0.0, value]], [signal], ["g"], ["red_team"], [2], np.array([True]))
    high, low, unseen = (
        past.value((1, 1, level, kind)) for level, kind in ((4, "red_team"), (0, "red_team"), (2, "benign"))
    )
    assert (high, low, unseen) == (1.0, 3.0, 2.0)
    assert past.value((7, 1, 0, "red_team")) is None


def test_invalid_rollouts_are_nobodys_sibling():
    rewards = [[1.0], [3.0], [100.0]]
    got = _turns(rewards, valid=[True, True, False])
    assert [a.tolist() for a in got] == [[-2.0], [2.0], [0.0]]


def test_equal_returns_give_zero_with_and_without_std():
    for std in (False, True):
        got = group_advantages(np.full(3, 0.7), ["a"] * 3, np.ones(3, bool), std=std)
        assert got == pytest.approx(np.zeros(3), abs=1e-9)


def test_a_lone_rollout_has_nothing_to_compare_with():
    for std in (False, True):
        assert group_advantages(np.array([5.0]), ["a"], np.array([True]), std=std).tolist() == [0.0]


def test_what_an_invalid_rollout_holds_never_leaks():
    nan = float("nan")
    got = group_advantages(np.array([1.0, 3.0, nan]), ["a"] * 3, np.array([True, True, False]), std=True)
    assert np.isfinite(got).all() and got[2] == 0.0
    turns = _turns([[1.0, 2.0], [3.0, 1.0], [nan, nan]], valid=[True, True, False])
    assert np.isfinite(np.concatenate(turns)).all() and not turns[2].any()
    past = TurnBaseline()
    past.update([[nan]], [[nan]], ["g"], ["k"], [1], np.array([False]))
    assert past.value((0, 1, 5, "k")) is None


def test_groups_are_kept_apart_wherever_their_rows_lie():
    together = _turns([[1.0], [3.0], [10.0], [30.0]], groups=["a", "a", "b", "b"])
    apart = _turns([[1.0], [10.0], [3.0], [30.0]], groups=["a", "b", "a", "b"])
    assert [a.item() for a in together] == [-2.0, 2.0, -20.0, 20.0]
    assert [a.item() for a in apart] == [-2.0, -20.0, 2.0, 20.0]


@pytest.mark.parametrize(("prior", "share"), [(0.0, 1.0), (2.0, 0.5), (6.0, 0.25)])
def test_siblings_are_shrunk_towards_the_past_by_their_number(prior, share):
    past = TurnBaseline()
    past.update([[10.0]], [[10.0]], ["g"], ["red_team"], [1], np.array([True]))
    got = _turns([[1.0], [2.0], [6.0]], past=past, prior=prior)  # two siblings each
    assert got[0].item() == pytest.approx(1.0 - (share * 4.0 + (1 - share) * 10.0))


def test_a_constant_per_turn_changes_nothing_if_the_past_saw_it_too():
    rng = np.random.default_rng(3)
    rewards, earlier = ([list(rng.random(3)) for _ in range(4)] for _ in range(2))
    shift = (5.0, -1.0, 2.0)

    def advantages(constant):
        shifted, shifted_earlier = (
            [[x + c for x, c in zip(r, constant, strict=True)] for r in rows] for rows in (rewards, earlier)
        )
        past = TurnBaseline()
        # The running minimum is taken of the signals, which a constant in the rewards leaves alone.
        common = {"groups": ["g"] * 4, "kinds": ["k"] * 4, "planned": [3] * 4, "valid": np.ones(4, bool)}
        past.update(rewards=shifted_earlier, signals=earlier, **common)
        return turn_advantages(rewards=shifted, signals=rewards, past=past, **common)

    for plain, moved in zip(advantages((0.0, 0.0, 0.0)), advantages(shift), strict=True):
        assert moved == pytest.approx(plain)


def test_a_baseline_looks_only_at_what_came_before_the_reply():
    """The bucket of turn t may depend on s_1 .. s_{t-1}, never on s_t or later."""
    for t in range(3):
        before = [0.9, 0.3, 0.6]
        after = [*before[:t], *(0.0 for _ in before[t:])]
        assert situation(t, before, 3, "k") == situation(t, after, 3, "k")
    assert situation(1, [0.9, 0], 3, "k") != situation(1, [0.1, 0], 3, "k")


def test_nobody_and_no_past_leaves_the_return_to_go_itself():
    assert _turns([[0.5, 0.25]])[0].tolist() == [0.75, 0.25]


# A two-turn process with two replies a turn: reply 1 at turn 1 ends the dialogue (the policy stops it).
REWARD = {(0, 0): (0.3, 0.9), (0, 1): (0.3, 0.1), (1,): (1.0,)}


def _process(theta):
    """Paths with probability, score function (gradient of log-probability) by turn, and rewards."""
    p1, p2 = 1 / (1 + np.exp(-theta))
    for path, rewards in REWARD.items():
        probability = p1 if path[0] == 1 else (1 - p1) * (p2 if path[1] == 1 else 1 - p2)
        scores = [np.array([path[0] - p1, 0.0])]
        if len(path) == 2:
            scores.append(np.array([0.0, path[1] - p2]))
        yield probability, scores, rewards


def _true_gradient(theta):
    total = np.zeros(2)
    for probability, scores, rewards in _process(theta):
        total += probability * sum(scores) * sum(rewards)
    return total


def _expected_estimate(theta, advantages_of):
    total = np.zeros(2)
    for first, second in itertools.product(list(_process(theta)), repeat=2):
        probability = first[0] * second[0]
        advantages = advantages_of([list(first[2]), list(second[2])])
        for (_, scores, _), row in zip((first, second), advantages, strict=True):
            for score, advantage in zip(scores, row, strict=True):
                total += probability * score * advantage / 2
    return total


THETA = np.array([-0.4, 0.7])


@pytest.mark.parametrize("with_past", [False, True])
def test_the_turn_estimator_is_unbiased_by_exact_enumeration(with_past):
    past = TurnBaseline()
    if with_past:
        past.update([[0.2, 0.7], [0.9]], [[0.2, 0.7], [0.9]], ["g"] * 2, ["k"] * 2, [2, 2], np.ones(2, bool))

    def advantages(rewards):
        return turn_advantages(rewards, rewards, ["g"] * 2, ["k"] * 2, [2, 2], np.ones(2, bool), past)

    assert _expected_estimate(THETA, advantages) == pytest.approx(_true_gradient(THETA), abs=1e-10)


def test_a_self_included_baseline_fails_the_same_enumeration():
    def advantages(rewards):
        to_go = [returns_to_go(r) for r in rewards]
        means = [np.mean([g[t] for g in to_go if len(g) > t]) for t in range(max(map(len, to_go)))]
        return [np.array([g[t] - means[t] for t in range(len(g))]) for g in to_go]

    bias = _expected_estimate(THETA, advantages) - _true_gradient(THETA)
    assert np.abs(bias).max() > 1e-3
