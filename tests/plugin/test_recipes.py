"""Recipes compose, carry the paper's values, and leave nothing of the embedded default behind."""

from pathlib import Path

import pytest

pytest.importorskip("verl")
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from verl_steer.config import PRESETS, SteerConfig

RECIPES = ("steer_grpo", "steer_grpo_7b", "steer_grpo_3b", "steer_grpo_reference")
TUTOR = ("steer.tutor.kind=endpoint", "steer.tutor.model=tutor", "steer.tutor.base_urls=[http://tutor:8000/v1]")


def composed(recipe: str, *overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[f"+recipe={recipe}", *overrides])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_whole_and_its_steer_node_is_valid(recipe):
    config = composed(recipe, *TUTOR)
    plain = OmegaConf.to_container(config, resolve=True)
    SteerConfig.from_mapping(plain["steer"])
    assert plain["actor_rollout_ref"]["rollout"]["agent"]["default_agent_loop"] == "steer"
    assert plain["data"]["seed"] is not None, "without a seed nothing is reproducible"


def test_a_real_run_on_a_gpu_keeps_no_embedded_size_rate_precision_or_device(monkeypatch):
    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    real = (
        "actor_rollout_ref.model.path=/models/real",
        "data.train_files=/data/rl.parquet",
        "data.val_files=/data/val.parquet",
        *TUTOR,
    )
    config = composed("steer_grpo", *real)
    assert config.trainer.device == "cuda" and config.actor_rollout_ref.rollout.name == "vllm"
    assert config.actor_rollout_ref.actor.optim.lr == 1e-5
    assert config.actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype == "bf16"
    assert config.data.train_batch_size == 64 and config.data.max_response_length >= 8192
    assert config.steer.dialogue.max_turn_tokens == 768
    assert config.trainer.total_training_steps is None
    assert config.actor_rollout_ref.model.override_config.attn_implementation == "flash_attention_2"
    assert config.trainer.v1.sampler.sampler_kwargs.poll_interval == 2.0
    small = composed("steer_grpo")
    flat = dict(_leaves(OmegaConf.to_container(small, resolve=True)))
    for key in (
        "data.train_batch_size",
        "data.max_prompt_length",
        "data.max_response_length",
        "actor_rollout_ref.actor.optim.lr",
    ):
        assert OmegaConf.select(config, key) != flat[key], key


def test_a_run_that_names_only_its_student_gets_no_toy_data_and_no_toy_tutor():
    config = composed("steer_grpo", "actor_rollout_ref.model.path=/models/real")
    assert config.steer.tutor.kind == "endpoint" and config.data.train_files is None and config.data.val_files is None


def test_the_embedded_default_asks_for_one_gpu(monkeypatch):
    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    config = composed("steer_grpo")
    assert config.trainer.n_gpus_per_node == 1 == config.actor_rollout_ref.rollout.tensor_model_parallel_size


def test_the_7b_recipe_carries_the_papers_values():
    config = composed("steer_grpo_7b", *TUTOR)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size, rollout.n) == (64, 64, 5)
    assert (actor.optim.lr, actor.optim.weight_decay) == (1e-5, 0.01)
    assert (actor.loss_agg_mode, actor.kl_loss_coef, actor.kl_loss_type) == ("seq-mean-token-sum", 0.1, "low_var_kl")
    assert config.data.max_prompt_length + config.data.max_response_length == 10_240 == rollout.max_model_len
    assert (config.trainer.total_epochs, config.trainer.n_gpus_per_node, rollout.name) == (1, 8, "vllm")
    assert config.algorithm.adv_estimator == "steer_grpo" and not config.algorithm.steer.std


def test_the_reference_recipe_carries_the_reference_codes_values():
    config = composed("steer_grpo_reference", *TUTOR)
    reward = SteerConfig.from_mapping(OmegaConf.to_container(config.steer, resolve=True)).reward.resolve()
    assert reward == PRESETS["reference"]
    assert (reward.return_form, reward.norm, reward.format_bonus, reward.repetition_penalty) == (
        "terminal",
        "tenth",
        1.0,
        0.2,
    )
    assert config.actor_rollout_ref.actor.loss_agg_mode == "token-mean"
    assert config.actor_rollout_ref.actor.kl_loss_coef == 0.001
    assert config.algorithm.adv_estimator == "masked_grpo" and config.algorithm.norm_adv_by_std_in_grpo


@pytest.mark.parametrize(
    ("credit", "estimator"),
    [("null", "steer_grpo"), ("dialogue", "steer_grpo"), ("turn", "steer_turn"), ("final", "steer_final")],
)
def test_credit_chooses_the_estimator(credit, estimator):
    assert composed("steer_grpo", f"steer.reward.credit={credit}").algorithm.adv_estimator == estimator


def test_group_filtering_reaches_the_sampler():
    """verl passes these to its own samplers only."""
    kwargs = composed("steer_grpo").trainer.v1.sampler.sampler_kwargs
    assert kwargs.filter_groups_metric is None and kwargs.gen_batch_size == kwargs.train_batch_size
    kwargs = composed("steer_grpo", "algorithm.filter_groups.enable=true").trainer.v1.sampler.sampler_kwargs
    assert kwargs.filter_groups_metric == "reward" and kwargs.gen_batch_size == 1


def test_the_sampler_follows_the_trainer_mode():
    assert composed("steer_grpo").trainer.v1.sampler.custom_sampler.name == "SteerReplayBuffer"
    mode = composed("steer_grpo", "trainer.v1.trainer_mode=colocate_async").trainer.v1.sampler.custom_sampler.name
    assert mode == "SteerReplayBufferAsync"


def test_the_users_example_is_the_whole_interface():
    conf = Path(__file__).parents[2] / "examples" / "conf"
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[f"hydra.searchpath=[file://{conf}]", "+recipe=my_run"])
    plain = OmegaConf.to_container(config, resolve=True)
    steer = SteerConfig.from_mapping(plain["steer"])
    assert steer.tutor.base_urls == ("http://tutor-0:8000/v1", "http://tutor-1:8000/v1")
    assert plain["actor_rollout_ref"]["model"]["path"] == "steer-sft-7b" and plain["trainer"]["n_gpus_per_node"] == 8


def test_overrides_on_the_command_line_win():
    config = composed("steer_grpo", "data.train_batch_size=3", "steer.reward.alpha=0", "steer.dialogue.feedback=script")
    assert config.data.train_batch_size == 3 == config.actor_rollout_ref.actor.ppo_mini_batch_size
    steer = SteerConfig.from_mapping(OmegaConf.to_container(config.steer, resolve=True))
    assert steer.reward.resolve().alpha == 0.0 and steer.dialogue.feedback == "script"


def _leaves(node, path=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
