"""A package that a configuration asks for and that is missing is named before Ray starts, with the way out."""

import pytest

pytest.importorskip("verl")
from hydra import compose, initialize_config_module

from verl_steer.plugin import preflight, requirements, sft_preflight
from verl_steer.plugin.checks import Problem

ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"


@pytest.fixture
def absent(monkeypatch):
    """Makes packages look absent, and all others present."""

    def make(*names: str) -> None:
        monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in names else object())

    return make


def composed(*overrides: str, trainer: str = "ppo_trainer"):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(trainer, overrides=list(overrides))


def test_flash_attention_that_is_not_there_is_named_with_both_ways_out(absent):
    absent("flash_attn")
    with pytest.raises(Problem) as caught:
        requirements.attention(composed("+recipe=steer_grpo_7b"))
    said = str(caught.value)
    assert f"{ATTENTION}=flash_attention_2" in said and requirements.FLASH_ATTN in said and "nvcc" in said
    way_out = said.rsplit(": ", 1)[1].split()
    assert requirements.attention(composed("+recipe=steer_grpo_7b", *way_out)) == "sdpa"
    config = composed("+recipe=steer_grpo_7b", *way_out)
    assert config.actor_rollout_ref.model.use_remove_padding is False, "verl's packed path needs flash-attn as well"


def test_the_way_out_is_an_override_of_every_recipe(absent, monkeypatch):
    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    absent("flash_attn")
    for recipe, trainer, nodes in (
        ("steer_grpo", "ppo_trainer", ()),
        ("steer_sft", "sft_trainer_engine", ("model", "engine")),
    ):
        with pytest.raises(Problem) as caught:
            requirements.attention(composed(f"+recipe={recipe}", trainer=trainer), *nodes)
        way_out = str(caught.value).rsplit(": ", 1)[1].split()
        found = composed(f"+recipe={recipe}", *way_out, trainer=trainer)
        assert requirements.attention(found, *nodes) == "sdpa"


def test_flash_attention_is_asked_for_only_where_it_is_used(absent):
    absent()
    assert requirements.attention(composed("+recipe=steer_grpo_7b")) == "flash_attention_2"
    absent("flash_attn")
    assert requirements.attention(composed("+recipe=steer_grpo_7b", "trainer.device=cpu"))
    assert requirements.attention(composed("+recipe=steer_grpo_7b", "actor_rollout_ref.actor.strategy=megatron"))


@pytest.mark.parametrize(("name", "way"), [("vllm", r"-e \"\.\[gpu\]\""), ("sglang", r"verl\[sglang\]==0\.9\.1")])
def test_a_rollout_engine_that_is_not_there_is_named_with_how_it_is_installed(absent, name, way):
    absent(name)
    with pytest.raises(Problem, match=f"some.key={name}, but {name} is not installed here: .*{way}"):
        requirements.rollout_engine("some.key", name)
    assert requirements.rollout_engine("some.key", "hf") == "hf"
    absent()
    assert requirements.rollout_engine("some.key", name) == name


def test_the_sglang_extra_is_one_of_the_installed_verl():
    from importlib.metadata import metadata, version

    assert "sglang" in (metadata("verl").get_all("Provides-Extra") or [])
    assert f"verl[sglang]=={version('verl')}" in requirements._ENGINES["sglang"]


def test_both_preflights_look(absent, monkeypatch):
    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    absent("flash_attn")
    with pytest.raises(Problem, match="flash-attn is not installed"):
        preflight.run_preflight(composed("+recipe=steer_grpo_7b"))
    with pytest.raises(Problem, match="flash-attn is not installed"):
        sft_preflight.run_preflight(composed("+recipe=steer_sft_7b", trainer="sft_trainer_engine"))
    absent("vllm")
    with pytest.raises(Problem, match=r"rollout\.name=vllm, but vllm"):
        preflight.run_preflight(composed("+recipe=steer_grpo_7b"))
