"""patches/empty-rows-in-baselines.patch"""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

REWARDS = torch.tensor([[0, 0.5, 0, 0.5], [0.25, 0, 0, 0.25], [0, 0, 0, 0], [1.0, 0, 0, 1.0], [0, 0.0, 0, 0.5]])
MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1]])
GROUPS = np.array(["a", "a", "a", "b", "b"], dtype=object)
VOTING = [0, 1, 3, 4]
BY_GROUP = (
    "grpo",
    "grpo_vectorized",
    "rloo",
    "rloo_vectorized",
    "reinforce_plus_plus_baseline",
    "gpg",
)


def data(rows, mask=MASK, **more):
    from verl import DataProto

    tensors = {"token_level_rewards": REWARDS[rows].clone(), "response_mask": mask[rows]}
    return DataProto.from_dict(tensors | {key: value[rows] for key, value in more.items()}, {"uid": GROUPS[rows]})


def compute(batch, estimator):
    from verl.trainer.ppo.ray_trainer import compute_advantage

    config = OmegaConf.create({"norm_adv_by_std_in_grpo": True, "gamma": 1.0})
    return compute_advantage(batch, estimator, gamma=1.0, lam=0.95, config=config).batch


@pytest.mark.unpatched("Tensor-likes are not close")
@pytest.mark.parametrize("estimator", BY_GROUP)
def test_a_row_without_a_trained_token_changes_nobody_elses_advantage(estimator):
    found = compute(data(list(range(5))), estimator)
    alone = compute(data(VOTING), estimator)
    torch.testing.assert_close(found["advantages"][VOTING], alone["advantages"].float())
    torch.testing.assert_close(found["returns"][VOTING], alone["returns"].float())
    assert not found["advantages"][2].any()


@pytest.mark.parametrize("estimator", ["opo", "reinforce_plus_plus"])
def test_estimators_that_weigh_by_tokens_stay_right(estimator):
    found = compute(data(list(range(5))), estimator)
    torch.testing.assert_close(found["advantages"][VOTING], compute(data(VOTING), estimator)["advantages"].float())


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_a_batch_without_any_voter_gives_zeros(estimator):
    found = compute(data(list(range(5)), mask=torch.zeros_like(MASK)), estimator)
    assert not found["advantages"].any()


def test_gae_is_left_alone():
    values = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    found = compute(data(list(range(5)), values=values), "gae")
    alone = compute(data(VOTING, values=values), "gae")
    for key in ("advantages", "returns"):
        torch.testing.assert_close(found[key][VOTING], alone[key])
