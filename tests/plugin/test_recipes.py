"""Recipes compose, carry the paper's values, and leave nothing of the embedded default behind."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("verl")
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from verl_steer.config import PRESETS, SteerConfig
from verl_steer.plugin.arithmetic import batches_divide
from verl_steer.plugin.checks import lengths_agree
from verl_steer.plugin.cpu.options import EngineOptions

RECIPES = (
    "steer_grpo",
    "steer_grpo_3b",
    "steer_grpo_7b",
    "steer_grpo_7b_2nodes",
    "steer_grpo_7b_lora",
    "steer_grpo_qwen3vl_8b",
    "steer_grpo_reference",
)
FOLDER = Path(__file__).parents[2] / "recipes" / "recipe"
REAL = (
    "actor_rollout_ref.model.path=/models/real",
    "data.train_files=/data/rl.parquet",
    "data.val_files=/data/val.parquet",
)
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


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("rollout", [None, "sglang"])
def test_verl_itself_accepts_a_recipe_and_its_batches_divide(recipe, rollout, monkeypatch):
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    config = composed(recipe, *REAL, *TUTOR, *([f"actor_rollout_ref.rollout.name={rollout}"] if rollout else []))
    if importlib.util.find_spec("vllm") is None and config.actor_rollout_ref.model.lora_rank:
        # verl looks the rank up in vLLM itself; these are the ranks of verl's own list for it (vllm_rollout/utils.py:94).
        assert config.actor_rollout_ref.model.lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        config.actor_rollout_ref.model.lora_rank = 0
    validate_config(config, use_reference_policy=config.actor_rollout_ref.actor.use_kl_loss, use_critic=False)
    assert omega_conf_to_dataclass(config.actor_rollout_ref.rollout).name == (rollout or "vllm")
    batches_divide(config)
    lengths_agree(config)


def _embedded_keys() -> dict[str, str]:
    """Every key of `steer_grpo` and what it inherits that is written ${steer.embedded:SMALL,REAL}."""
    found = {}
    for name in ("steer_base", "steer_cpu", "steer_grpo"):
        for key, value in _leaves(OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"), resolve=False)):
            if "steer.embedded:" in str(value):
                found[key] = value
    return found


#: Written as they are in steer_grpo.yaml, and right for any size.
LITERAL = {
    "steer.reward.preset": "paper_v2",
    "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.rollout.n": 5,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "trainer.total_epochs": 1,
    "trainer.val_before_train": True,
    "trainer.nnodes": 1,
}
#: Paths, names and values computed from a key that depends on the student.
DERIVED = {
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "steer.tutor.model",
    "steer.tutor.base_urls",
}
#: What a real run must find (the paper's values, or verl's own where the paper has none).
EXPECTED = {
    "steer.tutor.kind": "endpoint",
    "steer.difficulty.kind": "none",
    "steer.dialogue.max_turn_tokens": 768,
    "data.train_files": "/data/rl.parquet",
    "data.val_files": "/data/val.parquet",
    "data.train_batch_size": 64,
    "data.max_prompt_length": 2048,
    "data.max_response_length": 8192,
    "data.dataloader_num_workers": 8,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2,
    "actor_rollout_ref.actor.optim.lr": 1e-5,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 2,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 2,
    "actor_rollout_ref.rollout.agent.num_workers": 8,
    "reward.num_workers": 8,
    "trainer.total_training_steps": None,
    "trainer.save_freq": 50,
    "trainer.test_freq": 20,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    "trainer.n_gpus_per_node": 8,
    "trainer.v1.sampler.sampler_kwargs.poll_interval": 2.0,
}


def test_every_value_of_steer_grpo_depends_on_the_student_or_is_listed_as_right_for_any_size():
    plain = OmegaConf.to_container(OmegaConf.load(FOLDER / "steer_grpo.yaml"), resolve=False)
    plain.pop("defaults")
    literal = {k: v for k, v in _leaves(plain) if "${" not in str(v) and not isinstance(v, list)}
    assert literal == LITERAL
    assert set(_embedded_keys()) == set(EXPECTED)


def test_model_data_and_tutor_overridden_leave_nothing_embedded_sized_behind(monkeypatch):
    """Composed both ways on a GPU: what differs is every key that depends on the student, each at its real value."""
    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    small = dict(_leaves(OmegaConf.to_container(composed("steer_grpo"), resolve=True)))
    real = dict(_leaves(OmegaConf.to_container(composed("steer_grpo", *REAL, *TUTOR), resolve=True)))
    assert {key: real[key] for key in EXPECTED} == EXPECTED
    different = {key for key in small.keys() | real.keys() if small.get(key, "absent") != real.get(key, "absent")}
    assert set(EXPECTED) - different == set(), "a key whose embedded value is its real one needs no switch"
    # verl's own configuration repeats lengths, batch and tensor parallelism by interpolation (oc.select).
    origin = OmegaConf.to_container(composed("steer_grpo"), resolve=False)
    unexplained = {
        key
        for key in different - set(EXPECTED) - DERIVED
        if "${" not in str(dict(_leaves(origin)).get(key, "")) or "steer.embedded" in str(dict(_leaves(origin))[key])
    }
    assert unexplained == set()
    # And the other way round: nothing of the machine without a GPU either.
    assert (real["trainer.device"], real["actor_rollout_ref.rollout.name"]) == ("cuda", "vllm")
    assert real["actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype"] == "bf16"
    assert real["actor_rollout_ref.model.override_config.attn_implementation"] == "flash_attention_2"


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
    student = plain["actor_rollout_ref"]["model"]["path"]
    commands = (Path(__file__).parents[2] / "recipes" / "README.md").read_text()
    assert f"`{student}`" in commands, "what stage II leaves, by the page with the commands"
    assert all(plain["data"][key] in commands for key in ("train_files", "val_files"))
    assert plain["trainer"]["n_gpus_per_node"] == 8


def test_the_options_named_in_the_recipes_comments_are_read():
    hf = "actor_rollout_ref.rollout.engine_kwargs.hf={slots: 8, threads: 1}"
    ray = "actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.steer_ray.timeout_s=60"
    rollout = composed("[steer_grpo,with_separate_async]", f"+{hf}", f"+{ray}").actor_rollout_ref.rollout
    assert EngineOptions.read(rollout.engine_kwargs) == EngineOptions(slots=8, threads=1)
    assert rollout.checkpoint_engine.engine_kwargs.steer_ray.timeout_s == 60
    for recipe, option in (("steer_cpu", hf.split("=")[0]), ("with_separate_async", ray.split("=")[0])):
        assert f"+{option}=" in (FOLDER / f"{recipe}.yaml").read_text()


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
