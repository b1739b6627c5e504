"""patches/packed-attention-without-flash.patch"""

import pytest
import torch
from transformers.utils import is_flash_attn_2_available


def positions(length):
    """M-RoPE positions of a text: (4, 1, length)."""
    return torch.arange(length).expand(4, 1, length)


@pytest.mark.unpatched("_flash_use_top_left_mask")
@pytest.mark.skipif(is_flash_attn_2_available(), reason="with flash-attn installed the name is defined")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_give_the_logits_of_single_ones(tiny_vlm, classes_restored, attention):
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    config = AutoConfig.from_pretrained(tiny_vlm, attn_implementation=attention)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_vlm, config=config, dtype=torch.float32).eval()
    apply_monkey_patch(model, use_remove_padding=True)
    image = model.config.image_token_id
    pixels = torch.rand(32, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    first = torch.tensor([[5, 6, image, image, image, image, 7]])
    second = torch.tensor([[8, image, image, image, image, 9, 10, 11, 12]])

    def logits(tokens, position_ids, picture):
        shown = {"pixel_values": pixels[picture], "image_grid_thw": grid[: len(pixels[picture]) // 16]}
        return model(input_ids=tokens, attention_mask=None, position_ids=position_ids, use_cache=False, **shown).logits

    with torch.no_grad():
        packed = logits(torch.cat([first, second], dim=1), torch.cat([positions(7), positions(9)], dim=2), slice(0, 32))
        alone = [logits(first, positions(7), slice(0, 16)), logits(second, positions(9), slice(16, 32))]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)


def test_flash_attention_keeps_verls_forward(tiny_vlm, classes_restored):
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention
    from verl.models.transformers import qwen2_vl
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_vlm, dtype=torch.float32)
    model.config._attn_implementation_internal = "flash_attention_2"
    apply_monkey_patch(model, use_remove_padding=True)
    assert Qwen2_5_VLAttention.forward is qwen2_vl.qwen2_vl_attn_forward
