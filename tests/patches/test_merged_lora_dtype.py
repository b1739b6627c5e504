"""patches/merged-lora-dtype.patch"""

from types import SimpleNamespace

import pytest
import torch


def sent_and_expected(monkeypatch, adapter):
    """What an FSDP2 model sends its rollout, collected after the base is restored; and base plus adapter."""
    from peft import LoraConfig, get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from verl.utils import fsdp_utils
    from verl.workers.engine.fsdp import transformer_impl

    for module in (transformer_impl, fsdp_utils):
        monkeypatch.setattr(module, "get_device_name", lambda: "cpu")
        monkeypatch.setattr(module, "get_device_id", lambda: torch.device("cpu"))
    monkeypatch.setattr(transformer_impl, "log_gpu_memory_usage", lambda *args, **options: None)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    base = Qwen2ForCausalLM(Qwen2Config(hidden_size=16, intermediate_size=16, **sizes))
    expected = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(adapter)
        expected["model.layers.0.self_attn.q_proj.weight"] += (
            layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        )
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=["fsdp"])
    fully_shard(model.base_model.model.model.layers[0], mesh=mesh)  # verl merges what lies in such a layer
    fully_shard(model, mesh=mesh)
    engine = SimpleNamespace(module=model, _is_offload_param=False)
    return dict(list(transformer_impl.FSDPEngine._merged_lora_per_tensor_param(engine))), expected


@pytest.mark.unpatched("bfloat16")
@pytest.mark.parametrize("adapter", [0.0, 0.5])
def test_a_merged_adapter_travels_in_the_precision_it_is_trained_in(one_rank, monkeypatch, adapter):
    sent, expected = sent_and_expected(monkeypatch, adapter)
    assert {tensor.dtype for tensor in sent.values()} == {torch.float32}
    for name, tensor in sent.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0 if adapter == 0 else 1e-7)
