"""Adapters in the vision tower matter to what is sampled, vLLM drops them, and a run that would lose them is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("verl")
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from test_hf_rollout import BLUE, RED, Student
from tiny_model import build_tiny_vlm

from verl_steer.plugin.checks import Problem
from verl_steer.plugin.geometry import measure
from verl_steer.plugin.lora import adapter_reaches_rollout, vision_layers

ROWS = [("a question about a picture", [RED]), ("two of them " * 3, [BLUE, RED]), ("no picture", [])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vlm(tmp_path_factory.mktemp("student"))


@cache
def _composed():
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=["+recipe=steer_grpo_7b_lora"])


def _run(*overrides: str):
    config = _composed().copy()
    for override in overrides:
        key, value = override.removeprefix("+").split("=")
        OmegaConf.update(config, key, yaml.safe_load(value), force_add=override.startswith("+"))
    return config


def test_an_adapter_that_vllm_would_drop_in_part_is_refused_before_ray(folder: Path) -> None:
    from transformers import AutoConfig

    student = AutoConfig.from_pretrained(folder)
    assert "in the language model only" in adapter_reaches_rollout(_run(), student)
    everywhere = "actor_rollout_ref.model.exclude_modules=null"
    with pytest.raises(Problem, match=r"into 7 layers of the vision tower .*blocks.0.*exclude_modules=.*visual"):
        adapter_reaches_rollout(_run(everywhere), student)
    merged, fsdp1 = "actor_rollout_ref.model.lora.merge=true", "actor_rollout_ref.actor.strategy=fsdp"
    assert "merged" in adapter_reaches_rollout(_run(everywhere, merged, fsdp1), student)
    with pytest.raises(Problem, match=r"fsdp2 would leave out .*projector .*merger.*exclude_modules"):
        adapter_reaches_rollout(_run(everywhere, merged), student)
    adapter_reaches_rollout(_run(merged), student)
    with pytest.raises(Problem, match=r"strategy=fsdp: verl finds no adapter to send under FSDP1, .*fsdp2 in"):
        adapter_reaches_rollout(_run(fsdp1), student)
    apart = "trainer.v1.trainer_mode=separate_async"
    with pytest.raises(Problem, match=r"separate_async: verl sends the base's weights .*merge=true"):
        adapter_reaches_rollout(_run(apart), student)
    adapter_reaches_rollout(_run(apart, merged), student)
    adapter_reaches_rollout(_run(everywhere, "actor_rollout_ref.model.lora_rank=0"), student)
    tower = "+actor_rollout_ref.rollout.engine_kwargs.vllm.enable_tower_connector_lora=true"
    adapter_reaches_rollout(_run(everywhere, tower), student)


def test_all_linear_adapts_the_layers_that_peft_adapts(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    student = Student(folder)
    geometry = measure(student.model.config)
    for exclude in (None, ".*visual.*"):
        config = LoraConfig(r=4, target_modules="all-linear", exclude_modules=exclude)
        model = get_peft_model(Student(folder).model, config)
        names = {
            n.split(".lora_A")[0].removeprefix("base_model.model.")
            for n, _ in model.named_parameters()
            if "lora_A" in n
        }
        assert names == {layer.name for layer in geometry.adapted("all-linear", exclude)}
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == geometry.lora_parameters(4, "all-linear", exclude)
        assert bool(vision_layers(geometry, "all-linear", exclude)) == (exclude is None)


def test_without_its_vision_part_a_trained_adapter_is_another_policy_on_pictures_only(folder: Path) -> None:
    """What vLLM computes with an adapter of all layers: the same probabilities on text, others on pictures."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    student = Student(folder)
    batch = []
    for text, images in ROWS:
        ids = student.tokens(text, images) + list(range(40, 60))
        features = student.processor.image_processor(images=images, return_tensors="pt") if images else {}
        batch.append({"input_ids": torch.tensor([ids]), **features})
        batch[-1]["mm_token_type_ids"] = (batch[-1]["input_ids"] == student.model.config.image_token_id).int()
    model = get_peft_model(student.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        # A policy gradient with advantages of either sign, two updates: after the first, A has a gradient too.
        for advantage, row in zip((1.0, -1.0, 1.0), batch, strict=True):
            (-advantage * _taken(model, row).log().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    base = [_taken(model, row).detach() for row in batch]
    step()
    full = [_taken(model, row).detach() for row in batch]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "visual" in name and "lora_B" in name:
                parameter.zero_()
    partial = [_taken(model, row).detach() for row in batch]
    lost = [float((a - b).abs().max()) for a, b in zip(full, partial, strict=True)]
    moved = [float((a - b).abs().max()) for a, b in zip(full, base, strict=True)]
    correlation = float(torch.corrcoef(torch.stack([torch.cat(full), torch.cat(partial)]))[0, 1])
    print(f"lost with the vision part {lost}, moved by the update {moved}, correlation {correlation:.6f}")
    assert lost[2] == 0.0, "a row without a picture does not meet the vision tower"
    assert min(lost[:2]) > 1e-6, "beyond what rollout and trainer differ by otherwise"
    assert all(a < b for a, b in zip(lost, moved, strict=True)), "the language model's part does arrive"


def _taken(model, row) -> torch.Tensor:
    """(20,) probabilities of the reply's tokens."""
    logits = model(**row).logits[0, :-1]
    return torch.softmax(logits.float(), -1).gather(-1, row["input_ids"][0, 1:, None]).squeeze(-1)[-20:]
