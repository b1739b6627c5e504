"""What the plugin does for verl outside compat.py, on the pinned verl and on one that carries the patches.

The same tests run on both: here on the pinned verl, in tests/patches/test_patches.py (and with
tests/run.sh --patched) on the patched one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

PATCHED = "VERL_STEER_PATCHED_VERL" in os.environ

pytest.importorskip("verl")


def _sampler_config(folder: Path) -> dict:
    """The nodes that verl reads to build a sampler, wired as recipes/recipe/steer_base.yaml wires them."""
    settings = {"filter_groups_metric": "score", "gen_batch_size": 1, "train_batch_size": 8}
    settings |= {"max_inflight_gen_batches": 3, "sync_refill_failed_groups": True, "records_dir": str(folder)}
    sampler = {
        "custom_sampler": {"path": "pkg://verl_steer.plugin.sampler", "name": "SteerReplayBuffer"},
        "max_off_policy_threshold": None,
        "max_off_policy_strategy": "drop",
        "sync_refill_failed_groups": True,
        "sampler_kwargs": settings,
    }
    return {
        "algorithm": {"filter_groups": {"enable": True, "metric": "score", "max_inflight_gen_batches": 3}},
        "data": {"train_batch_size": 8},
        "reward": {"reward_model": {"enable": False}},
        "trainer": {"v1": {"sampler": sampler, "sync": {}}},
    }


def test_the_sampler_filters_groups_whether_verl_hands_it_the_settings_or_not(tmp_path):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    class Trainer(PPOTrainer):
        def __init__(self):
            self.config, self.trainer_mode = OmegaConf.create(_sampler_config(tmp_path)), "sync"

        def _add_prompts_to_generate(self, count):
            raise AssertionError("nothing is generated here")

    Trainer.__abstractmethods__ = frozenset()
    sampler = Trainer()._build_replay_buffer()
    assert type(sampler).__name__ == "SteerReplayBuffer"
    assert (sampler.filter_groups_metric, sampler.sync_refill_failed_groups) == ("score", True)
    assert (sampler.train_batch_size, sampler.gen_batch_size, sampler.max_inflight_gen_batches) == (8, 1, 3)


def test_what_verl_passes_to_the_sampler_beats_its_own_settings():
    from verl_steer.plugin.sampler import SteerReplayBuffer

    sampler = SteerReplayBuffer(
        trainer_mode="sync",
        trainer_config=OmegaConf.create({}),
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={"filter_groups_metric": "old", "poll_interval": 0.1},
        refill_fn=lambda count: None,
        filter_groups_metric="reward",
    )
    assert (sampler.filter_groups_metric, sampler.poll_interval) == ("reward", 0.1)


@pytest.mark.parametrize(("estimator", "expected"), [("masked_grpo", 2**-0.5), ("steer_grpo", 0.25)])
def test_a_masked_rollout_has_no_vote_whoever_drops_it(estimator, expected):
    import numpy as np
    from verl import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage

    rewards = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.25, 0.25]])
    data = DataProto.from_dict(
        {"token_level_rewards": rewards, "response_mask": torch.tensor([[1, 1], [0, 0], [1, 1]])},
        {"uid": np.array(["a", "a", "a"], dtype=object)},
    )
    config = OmegaConf.create({"norm_adv_by_std_in_grpo": True, "steer": {"std": False}})
    advantages = compute_advantage(data, estimator, config=config).batch["advantages"]
    torch.testing.assert_close(advantages[:, 0], torch.tensor([expected, 0.0, -expected]), atol=1e-5, rtol=0)


def test_a_reference_model_is_built_without_pinned_memory(monkeypatch):
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from verl.workers.config import FSDPEngineConfig

    from verl_steer.plugin.cpu import engine as cpu_engine
    from verl_steer.plugin.cpu import is_cpu

    if not is_cpu():
        pytest.skip("training here runs on a GPU")
    assert not PATCHED or not cpu_engine.PINS_MEMORY, "the plugin does not see that verl is patched"
    assert PATCHED or cpu_engine.PINS_MEMORY, "verl pins no memory any more: this workaround is needless"
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
        model = Qwen2ForCausalLM(Qwen2Config(hidden_size=16, intermediate_size=16, **sizes)).eval()
        tokens = torch.arange(8).unsqueeze(0)
        before = model(tokens).logits.detach()
        engine = object.__new__(cpu_engine.CpuEngineWithLMHead)
        engine.engine_config = FSDPEngineConfig(
            strategy="fsdp2", forward_only=True, mixed_precision={"param_dtype": "fp32"}
        )
        engine.model_config = type("Model", (), {"lora_rank": 0, "enable_activation_offload": False})
        engine.device_mesh = init_device_mesh("cpu", (1,), mesh_dim_names=["fsdp"])
        built = engine._build_fsdp_module(model)
        torch.testing.assert_close(built(tokens).logits, before)
        assert (engine._is_offload_param, engine._is_offload_optimizer) == (False, False)
        assert engine.engine_config.forward_only is True
    finally:
        torch.distributed.destroy_process_group()
