"""A student that sees becomes its own critic; verl's engine reads its logits as values."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("verl")
from tiny_model import build_tiny_vlm
from transformers import AutoConfig

from verl_steer.plugin.value_model import load_value_model


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return build_tiny_vlm(tmp_path_factory.mktemp("critic") / "student")


def critic(student):
    config = AutoConfig.from_pretrained(student, attn_implementation="sdpa")
    return load_value_model(str(student), torch.float32, config, trust_remote_code=False), config


def test_every_token_gets_one_value_which_is_zero_before_the_first_update(student):
    model, config = critic(student)
    output = model(input_ids=torch.arange(12).view(2, 6), attention_mask=torch.ones(2, 6))
    assert output.logits.shape == (2, 6, 1) and not output.logits.any()
    assert config.tie_word_embeddings, "the actor's configuration is not the critic's"


def test_the_head_learns_and_leaves_the_embedding_alone(student):
    model, _ = critic(student)
    ids = torch.arange(12).view(2, 6)
    before = model.get_input_embeddings().weight.detach().clone()
    model.tie_weights()
    (model(input_ids=ids).logits.squeeze(-1) - 1.0).pow(2).mean().backward()
    assert model.lm_head.weight.grad.abs().max() > 0 and model.lm_head.weight.shape == (1, 64)
    assert torch.equal(model.get_input_embeddings().weight, before)
    names = set(model.state_dict())
    assert "lm_head.weight" in names and any("visual" in n for n in names), "it sees, as the student does"


def test_verl_asks_us_for_a_critic_that_sees_and_itself_for_any_other(student, monkeypatch):
    import verl.utils.model

    config = AutoConfig.from_pretrained(student, attn_implementation="sdpa")
    model = verl.utils.model.load_valuehead_model(
        local_path=str(student), torch_dtype=torch.float32, model_config=config, trust_remote_code=False
    )
    assert model.lm_head.out_features == 1
    from transformers import Qwen2Config

    with pytest.raises((RuntimeError, ImportError, OSError)):
        verl.utils.model.load_valuehead_model(
            local_path=str(student / "none"),
            torch_dtype=torch.float32,
            model_config=Qwen2Config(),
            trust_remote_code=False,
        )
