"""The estimators on token tensors, with masked rollouts and padding rows among them."""

import numpy as np
import pytest
import torch

pytest.importorskip("verl")
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos

from verl_steer.plugin.advantage import (
    GROUP_RELATIVE,
    MASKABLE,
    group_facts,
    masked,
    steer_final,
    steer_grpo,
    steer_remax,
    steer_turn,
)

MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1]])
REWARDS = torch.tensor([[0, 0.5, 0, 0.5], [0.25, 0, 0, 0.25], [0, 0, 0, 0], [1.0, 0, 0, 1.0], [0, 0.0, 0, 0.5]])
UIDS = np.array(["a", "a", "a", "b", "b"], dtype=object)
CONFIG = OmegaConf.create({"norm_adv_by_std_in_grpo": True, "gamma": 1.0})


def test_steer_grpo_subtracts_the_mean_of_valid_rollouts_only():
    advantages, _ = steer_grpo(REWARDS, MASK, UIDS, CONFIG)
    # group a: returns 1.0 and 0.5; the masked row has no vote. group b: 2.0 and 0.5.
    assert advantages[0].tolist() == [0.25, 0.25, 0, 0.25]
    assert advantages[1].tolist() == [-0.25, 0, -0.25, -0.25]
    assert not advantages[2].any()
    assert advantages[3, 0] == pytest.approx(0.75)


def test_steer_turn_gives_each_turn_its_own_return_to_go():
    advantages, returns = steer_turn(REWARDS, MASK, UIDS, CONFIG)
    assert returns[0].tolist() == [1.0, 1.0, 0, 0.5]
    assert returns[3].tolist() == [2.0, 0, 0, 1.0]
    assert not advantages[2].any() and torch.isfinite(advantages).all()


def test_steer_turn_counts_what_every_token_of_a_turn_pays():
    """As with `use_kl_in_reward`: the penalty lies on all tokens, the reward on a turn's last one."""
    drifted = REWARDS - torch.tensor([[0.4, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4, [0] * 4])
    (plain, _), (advantages, returns) = (steer_turn(rewards, MASK, UIDS, CONFIG) for rewards in (REWARDS, drifted))
    assert returns[0].tolist() == pytest.approx([0.6, 0.6, 0, 0.5])
    assert advantages[0, 0] < plain[0, 0] and advantages[1, 0] > plain[1, 0]


def test_steer_final_trains_the_last_turn_alone():
    advantages, _ = steer_final(REWARDS, MASK, UIDS, CONFIG)
    assert advantages[0].tolist() == [0, 0, 0, 0.25]
    assert advantages[1].tolist() == [0, 0, -0.25, -0.25]
    assert not advantages[2].any()


def test_row_order_does_not_matter():
    order = torch.tensor([4, 2, 0, 3, 1])
    straight, _ = steer_grpo(REWARDS, MASK, UIDS, CONFIG)
    shuffled, _ = steer_grpo(REWARDS[order], MASK[order], UIDS[order.numpy()], CONFIG)
    assert torch.equal(shuffled, straight[order])


@pytest.mark.parametrize("name", MASKABLE)
def test_a_masked_row_changes_nobody_elses_advantage(name):
    estimator = masked(core_algos.get_adv_estimator_fn(name), name in GROUP_RELATIVE)
    keep = torch.tensor([0, 1, 3, 4])
    advantages, returns = estimator(REWARDS, MASK, UIDS, CONFIG)
    alone, alone_returns = core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=REWARDS[keep], response_mask=MASK[keep], index=UIDS[keep.numpy()], config=CONFIG
    )
    assert torch.allclose(advantages[keep], alone.float()) and torch.allclose(returns[keep], alone_returns.float())
    assert not advantages[2].any()


@pytest.mark.parametrize("name", sorted(GROUP_RELATIVE))
def test_a_group_that_kept_one_row_has_nothing_to_compare_with(name):
    estimator = masked(core_algos.get_adv_estimator_fn(name), group_relative=True)
    mask = MASK.clone()
    mask[4] = 0
    advantages, _ = estimator(REWARDS, mask, UIDS, CONFIG)
    assert not advantages[3].any()


def test_masked_grpo_honours_the_switch_that_turns_the_std_off():
    estimator = masked(core_algos.get_adv_estimator_fn("grpo"), group_relative=True)
    plain, _ = estimator(REWARDS, MASK, UIDS, OmegaConf.create({"norm_adv_by_std_in_grpo": False}))
    assert plain[0].tolist() == [0.25, 0.25, 0, 0.25]


def test_a_batch_without_any_valid_row_gives_zeros():
    estimator = masked(core_algos.get_adv_estimator_fn("grpo"), group_relative=True)
    advantages, returns = estimator(REWARDS, torch.zeros_like(MASK), UIDS, CONFIG)
    assert not advantages.any() and not returns.any()


def test_steer_remax_subtracts_the_greedy_twins_return_and_a_twin_without_verdicts_is_no_baseline():
    group_facts.replace({}, {"a": 0.25, "b": None})
    advantages, returns = steer_remax(REWARDS, MASK, UIDS, CONFIG)
    assert advantages[0].tolist() == [0.75, 0.75, 0, 0.75] and advantages[1].tolist() == [0.25, 0, 0.25, 0.25]
    assert not advantages[2:].any(), "a masked rollout, and a group whose twin has no return"
    assert returns[3].tolist() == [2.0, 0, 0, 2.0]


def test_steer_remax_without_a_twin_says_what_it_needs():
    group_facts.replace({}, {"a": 0.25})
    with pytest.raises(RuntimeError, match="group b has no greedy twin; it needs agent loop 'steer'"):
        steer_remax(REWARDS, MASK, UIDS, CONFIG)


def _spread_over_tokens(values, rows, chance):
    """Rollouts whose turn rewards are the same numbers in another order on other tokens; lengths in thousands."""
    rewards, mask = torch.zeros(rows, 4096), torch.zeros(rows, 4096, dtype=torch.long)
    for row in range(rows):
        ends = np.sort(chance.choice(4096, len(values), replace=False))
        rewards[row, ends] = torch.tensor(chance.permutation(values), dtype=torch.float32)
        mask[row, : ends[-1] + 1] = 1
    return rewards, mask


@pytest.mark.parametrize("name", [*sorted(GROUP_RELATIVE), "steer_grpo"])
def test_equal_returns_on_other_tokens_are_no_advantage_with_std(name):
    """Their float32 sums differ in the last bits, and the std of those is a millionth, too."""
    chance, uids = np.random.default_rng(0), np.array([f"g{n // 5}" for n in range(100)], dtype=object)
    parts = [_spread_over_tokens(chance.random(8), 5, chance) for _ in range(20)]
    rewards, mask = torch.cat([r for r, _ in parts]), torch.cat([m for _, m in parts])
    assert len({float(r.sum()) for r in rewards[:5]}) > 1, "nothing to be levelled"
    if name == "steer_grpo":
        advantages, _ = steer_grpo(rewards, mask, uids, OmegaConf.create({"steer": {"std": True}}))
    else:
        advantages, _ = masked(core_algos.get_adv_estimator_fn(name), True)(rewards, mask, uids, CONFIG)
    assert advantages.abs().max() < 1e-5, "opo weighs by length: rounding, by no std"


def test_a_real_difference_is_not_levelled():
    advantages, _ = masked(core_algos.get_adv_estimator_fn("grpo"), True)(REWARDS + 5, MASK, UIDS, CONFIG)
    assert advantages[0, 0] == pytest.approx(0.7071, abs=1e-4) and advantages[1, 0] == -advantages[0, 0]
