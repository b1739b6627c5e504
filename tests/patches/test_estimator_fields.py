"""patches/estimator-fields.patch"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData
from transfer_queue import KVBatchMeta


def jagged(rows):
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def stack(values):
    return torch.stack([NonTensorData(value) for value in values])


def queue():
    """What the trainer's queue holds of two rows."""
    return {
        "uid": stack(["a", "a"]),
        "response_mask": jagged([[1, 0, 1], [1, 1]]),
        "rm_scores": jagged([[0.0, 0.0, 1.0], [0.0, 0.5]]),
        "old_log_probs": jagged([[-1.0, -2.0, -3.0], [-4.0, -5.0]]),
        "entropy": jagged([[0.1, 0.2, 0.3], [0.4, 0.5]]),
        "extra_fields": stack([{"kind": "plain"}, {"kind": "hard"}]),
        "index": stack([7, 8]),
    }


class Queue:
    """TransferQueue's two functions: fields that nobody has written are left out without a word."""

    def __init__(self):
        self.fields, self.asked, self.written = queue(), [], None

    def kv_batch_get(self, keys, partition_id, select_fields):
        self.asked = list(select_fields)
        chosen = {name: value for name, value in self.fields.items() if name in select_fields}
        return TensorDict(chosen, batch_size=len(keys))

    def kv_batch_put(self, keys, partition_id, fields):
        self.written = fields
        return "batch"


def compute(estimator, monkeypatch):
    """Runs the V1 trainer's `_compute_advantage`; returns the queue and what the estimator was given."""
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1 import trainer_base

    monkeypatch.setattr(trainer_base, "tq", Queue())
    monkeypatch.setitem(core_algos.ADV_ESTIMATOR_REGISTRY, "mine", estimator)
    algorithm = {"adv_estimator": "mine", "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0}
    trainer = SimpleNamespace(
        config=OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": 2}}})
    )
    batch = KVBatchMeta(keys=["a_0_0", "a_1_0"], tags=[{}, {}], partition_id="train")
    trainer_base.PPOTrainer._compute_advantage(trainer, batch, {})
    return trainer_base.tq


@pytest.mark.unpatched(r"missing \d required keyword-only arguments")
def test_an_estimator_gets_the_fields_that_it_names(monkeypatch):
    given = {}

    def estimator(token_level_rewards, response_mask, index, *, entropy, extra_fields, config=None):
        given.update(entropy=entropy, extra_fields=extra_fields, index=index)
        return token_level_rewards, token_level_rewards

    written = compute(estimator, monkeypatch).written
    torch.testing.assert_close(given["entropy"], torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.0]]))
    assert isinstance(given["extra_fields"], np.ndarray)
    assert [fields["kind"] for fields in given["extra_fields"]] == ["plain", "hard"]
    assert list(given["index"]) == ["a", "a"], "the group, not the data set's column of that name"
    assert [row.tolist() for row in written["advantages"].unbind()] == [[0.0, 0.0, 1.0], [0.0, 0.5]]


def test_an_estimator_that_names_nothing_gets_and_costs_nothing_more(monkeypatch):
    given = {}

    def estimator(token_level_rewards, response_mask, index, config=None, **kwargs):
        given.update(kwargs)
        return token_level_rewards, token_level_rewards

    asked = compute(estimator, monkeypatch).asked
    assert given == {}
    assert not {"entropy", "extra_fields"} & set(asked)


@pytest.mark.parametrize("name", ["grpo_vectorized", "rloo", "opo", "reinforce_plus_plus", "gpg"])
def test_verls_own_estimators_run_as_before(name, monkeypatch):
    from verl.trainer.ppo import core_algos

    written = compute(core_algos.get_adv_estimator_fn(name), monkeypatch).written
    assert set(written.keys()) == {"advantages", "returns"}
