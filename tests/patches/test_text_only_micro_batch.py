"""patches/text-only-micro-batch.patch"""

import pytest
import torch


@pytest.fixture
def model(tiny_vlm):
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_vlm, dtype=torch.float32).model


@pytest.mark.unpatched("has no attribute 'mean'")
def test_text_alone_passes_and_the_vision_tower_takes_part_in_the_graph(model):
    from verl.models.transformers.qwen2_vl import _get_input_embeds

    tokens = torch.arange(12).view(2, 6)
    embeds, _ = _get_input_embeds(model, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(embeds, model.get_input_embeddings()(tokens))
    embeds.sum().backward()
    gradients = [parameter.grad for parameter in model.visual.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_picture_still_takes_its_place(model):
    from verl.models.transformers.qwen2_vl import _get_input_embeds

    vision, image = model.config.vision_config, model.config.image_token_id
    pixels = torch.rand(16, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
    tokens = torch.tensor([[1, 2, image, image, image, image, 3]])
    grid = torch.tensor([[1, 4, 4]])
    embeds, _ = _get_input_embeds(model, tokens, torch.ones_like(tokens), pixels, None, grid)
    seen = model.visual(pixels, grid_thw=grid).pooler_output
    torch.testing.assert_close(embeds[0, 2:6], seen)
