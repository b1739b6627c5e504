"""patches/vision-language-value-model.patch"""

import pytest
import torch


def load(path, monkeypatch):
    from transformers import AutoConfig
    from verl.utils import model

    # With trl installed verl wraps the model in trl's class, which this patch leaves alone.
    monkeypatch.setattr(model, "is_trl_available", lambda: False)
    config = AutoConfig.from_pretrained(path, attn_implementation="sdpa")
    config.num_labels = 1
    return model.load_valuehead_model(str(path), torch.float32, config, trust_remote_code=False)


@pytest.mark.unpatched("is not a value head model")
def test_a_vision_language_model_gives_one_value_for_every_token(tiny_vlm, classes_restored, monkeypatch):
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    critic = load(tiny_vlm, monkeypatch)
    apply_monkey_patch(critic, use_remove_padding=False)
    image = critic.config.image_token_id
    tokens = torch.tensor([[5, image, image, image, image, 7]])
    output = critic(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        position_ids=torch.arange(6).expand(4, 1, 6),
        pixel_values=torch.rand(16, 3 * 2 * 14 * 14),
        image_grid_thw=torch.tensor([[1, 4, 4]]),
        use_cache=False,
    )
    assert output.logits.shape == (1, 6, 1)
    assert critic.config._attn_implementation == "sdpa"
    critic.tie_weights()
    embedding = critic.get_input_embeddings().weight
    assert critic.lm_head.weight.shape == (1, embedding.shape[1]), "the head must not be tied to the embedding"
    output.logits.squeeze(-1).sum().backward()
    assert critic.lm_head.weight.grad.any()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in critic.model.visual.parameters())


@pytest.mark.unpatched("is not a value head model")
def test_a_text_model_is_loaded_with_the_attention_that_is_configured(tmp_path, monkeypatch):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    Qwen2ForCausalLM(Qwen2Config(hidden_size=16, intermediate_size=16, **sizes)).save_pretrained(tmp_path)
    critic = load(tmp_path, monkeypatch)
    assert critic(input_ids=torch.arange(4).unsqueeze(0)).logits.shape == (1, 4, 1)
    assert critic.config._attn_implementation == "sdpa"
