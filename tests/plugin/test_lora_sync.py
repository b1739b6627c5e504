"""What leaves a LoRA run: under FSDP2 the adapter goes to the rollout, under FSDP1 nothing does; a checkpoint becomes a model by a merge."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")
import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoProcessor
from verl.utils import fsdp_utils

from verl_steer.local.checkpoint import CheckpointError, find, model_of
from verl_steer.local.merge_lora import merge
from verl_steer.local.tokens import ConversationEncoder


@pytest.fixture
def adapted(one_rank):
    """A small model with an adapter, and the adapter as it is."""
    from peft import LoraConfig, get_peft_model
    from peft.utils.save_and_load import get_peft_model_state_dict
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    base = Qwen2ForCausalLM(Qwen2Config(hidden_size=16, intermediate_size=16, **sizes))
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=2, target_modules="all-linear"))
    return model, {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


@pytest.fixture
def checkpoint(one_rank, tmp_path):
    """A step of verl's own, of a vision-language model with an adapter that says something; and that model."""
    from peft import LoraConfig, get_peft_model
    from tiny_model import build_tiny_vlm
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    base = build_tiny_vlm(tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", exclude_modules=".*visual.*")
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    fsdp_utils.apply_fsdp2(model, {"mesh": init_device_mesh("cpu", (1,), mesh_dim_names=["fsdp"])}, {})
    manager = FSDPCheckpointManager(
        model,
        processing_class=AutoProcessor.from_pretrained(base),
        checkpoint_config={"save_contents": ["model"], "load_contents": ["model"]},
    )
    step = tmp_path / "run" / "global_step_3"
    manager.save_checkpoint(str(step / "actor"), global_step=3)
    return step, model, base


def collected(model, layered: bool, monkeypatch) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(fsdp_utils, "get_device_name", lambda: "cpu")
    return dict(fsdp_utils.collect_lora_params(model, layered_summon=layered, base_sync_done=True))


@pytest.mark.parametrize("layered", [True, False])
def test_under_fsdp2_the_whole_adapter_travels(adapted, layered, monkeypatch):
    model, expected = adapted
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=["fsdp"])
    fsdp_utils.apply_fsdp2(model, {"mesh": mesh}, {})
    found = collected(model, layered, monkeypatch)
    assert len(found) == 2 * 7 * 2, "two matrices for seven linear layers of two blocks"
    assert set(found) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_under_fsdp1_nothing_does(adapted, monkeypatch):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model, _ = adapted
    wrapped = FullyShardedDataParallel(
        model, auto_wrap_policy=fsdp_utils.get_fsdp_wrap_policy(model, is_lora=True), device_id=torch.device("cpu")
    )
    assert collected(wrapped, False, monkeypatch) == {}
    with pytest.raises(NotImplementedError):
        collected(wrapped, True, monkeypatch)


def test_a_checkpoint_becomes_the_model_that_was_trained(checkpoint, tmp_path):
    from peft.tuners.lora import LoraLayer

    step, trained, base = checkpoint
    with pytest.raises(CheckpointError, match=r"of a LoRA run.*merge_lora .*global_step_3/actor --out MODEL"):
        find(tmp_path / "run")
    out = merge(step, tmp_path / "merged")
    assert find(out) == out.resolve() and not list(tmp_path.glob(".merged*"))
    layer = next(m for n, m in trained.named_modules() if isinstance(m, LoraLayer) and "visual" not in n)
    merged = model_of(out, "float32")
    ids = torch.arange(20, 60).unsqueeze(0)
    with torch.no_grad():
        found, plain = (model(input_ids=ids).logits for model in (merged, model_of(base, "float32")))
        expected = trained(input_ids=ids).logits
    assert layer.r["default"] == 2
    # bfloat16 keeps eight bits of a weight.
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert (plain - expected).abs().max() > 0.2 * expected.abs().max(), "the adapter says something"
    assert ConversationEncoder(AutoProcessor.from_pretrained(out)).tokenizer.chat_template
    with pytest.raises(CheckpointError, match="exists; give another --out"):
        merge(step, out)
    with pytest.raises(CheckpointError, match=r"holds no lora_train_meta\.json"):
        merge(base, tmp_path / "other")


def test_a_folder_that_lacks_weights_is_no_model(checkpoint, tmp_path):
    """What verl writes as hf_model of a LoRA run: the right files with the names of peft inside."""
    from safetensors.torch import load_file, save_file

    _, _, base = checkpoint
    weights = base / "model.safetensors"
    save_file({f"base_model.model.{name}": tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights of its Qwen2_5_VLForConditionalGeneration"):
        model_of(base, "float32")
