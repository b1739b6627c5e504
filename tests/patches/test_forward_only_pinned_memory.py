"""patches/forward-only-pinned-memory.patch"""

from types import SimpleNamespace

import pytest
import torch


@pytest.mark.unpatched("accelerator|pin_memory|CUDA|NVIDIA")
def test_a_forward_only_model_is_built_where_there_is_no_accelerator(one_rank, monkeypatch):
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from verl.utils import fsdp_utils
    from verl.workers.config import FSDPEngineConfig
    from verl.workers.engine.fsdp import transformer_impl

    for module in (transformer_impl, fsdp_utils):
        monkeypatch.setattr(module, "get_device_name", lambda: "cpu")
        monkeypatch.setattr(module, "get_device_id", lambda: torch.device("cpu"))
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    model = Qwen2ForCausalLM(Qwen2Config(hidden_size=16, intermediate_size=16, **sizes)).eval()
    tokens = torch.arange(8).unsqueeze(0)
    before = model(tokens).logits.detach()
    engine = SimpleNamespace(
        engine_config=FSDPEngineConfig(strategy="fsdp2", forward_only=True, mixed_precision={"param_dtype": "fp32"}),
        model_config=SimpleNamespace(lora_rank=0, enable_activation_offload=False),
        device_mesh=init_device_mesh("cpu", (1,), mesh_dim_names=["fsdp"]),
    )
    built = transformer_impl.FSDPEngine._build_fsdp_module(engine, model)
    torch.testing.assert_close(built(tokens).logits, before)
