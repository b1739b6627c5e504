"""patches/grpo-vectorized-std.patch"""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

REWARDS = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.0, 2.0], [0.0, 0.0]])
GROUPS = np.array(["a", "a", "b", "b"], dtype=object)


def advantages(estimator, std):
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    data = DataProto.from_dict(
        {"token_level_rewards": REWARDS.clone(), "response_mask": torch.ones(4, 2)}, {"uid": GROUPS}
    )
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": std, "gamma": 1.0})
    return compute_advantage(data, estimator, norm_adv_by_std_in_grpo=std, config=config).batch["advantages"]


@pytest.mark.unpatched("Tensor-likes are not close")
def test_the_switch_reaches_grpo_vectorized():
    torch.testing.assert_close(advantages("grpo_vectorized", std=False), advantages("grpo", std=False))
    assert advantages("grpo_vectorized", std=False)[0, 0] == pytest.approx(0.25)


def test_with_the_standard_deviation_both_agree_as_before():
    torch.testing.assert_close(advantages("grpo_vectorized", std=True), advantages("grpo", std=True))
