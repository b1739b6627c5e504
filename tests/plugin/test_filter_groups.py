"""DAPO's filter: a group teaches something only if its valid rollouts differ."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from verl_steer.plugin import sampler
from verl_steer.plugin.sampler import SteerReplayBuffer, without_signal

# uid -> the returns of its rollouts; None: masked, and its reward is placed as 0.
GROUPS = {
    "differs": [1.0, 2.0, 3.0],
    "flat": [2.0, 2.0, 2.0],
    "flat but for a masked one": [2.0, None, 2.0],
    "one valid": [None, 3.0, None],
    "none valid": [None, None, None],
    "differs beside a masked one": [1.0, None, 3.0],
}
TEACH_NOTHING = {"flat": 2.0, "flat but for a masked one": 2.0, "one valid": 3.0, "none valid": 0.0}


def rollouts():
    """key -> return, of every rollout."""
    return {f"{uid}_{n}_0": value for uid, values in GROUPS.items() for n, value in enumerate(values)}


def test_a_masked_rollout_has_no_vote_in_what_a_group_teaches():
    keys = list(rollouts())
    assert without_signal(keys, [{"return": value} for value in rollouts().values()]) == TEACH_NOTHING


def test_a_group_that_somebody_else_scored_is_left_alone():
    assert without_signal(["a_0_0", "a_1_0"], [{"return": 1.0}, None]) == {}


@pytest.fixture
def buffer(monkeypatch):
    """A sampler that filters by reward, over finished groups in a queue of this process."""

    def kv_batch_get(keys, partition_id, select_fields):
        values = [rollouts()[key] for key in keys]
        if select_fields == ["rm_scores"]:
            return {"rm_scores": [torch.tensor([0.0, value or 0.0]) for value in values]}
        fields = [{"steer": {"score": {"return": value}}} for value in values]
        return {"extra_fields": np.array(fields, dtype=object)}

    monkeypatch.setattr("transfer_queue.kv_batch_get", kv_batch_get)
    made = SteerReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs={"filter_groups_metric": "reward", "train_batch_size": 2, "gen_batch_size": 1},
        refill_fn=lambda count: count,
    )
    made.partitions["train"] = {key: {} for key in rollouts()}
    made.finished_keys["train"] = set(GROUPS)
    return made


def test_the_sampler_filters_by_the_returns_of_valid_rollouts(buffer):
    for _ in range(2):  # from the cache the second time
        filtered, counts = buffer._dapo_filtered_keys("train")
        assert filtered == set(TEACH_NOTHING) and counts == Counter(TEACH_NOTHING.values())


def test_verl_alone_would_keep_a_group_for_the_zero_of_its_masked_rollout(buffer):
    filtered, _ = super(sampler._Recording, buffer)._dapo_filtered_keys("train")
    assert filtered == {"flat", "none valid"}
