"""A Qwen2.5-VL of about one and a half million parameters.

The real architecture, so that everything downstream (processor, M-RoPE, verl's engine, a vLLM
server) runs its real code, at a size that two CPU cores train in minutes. The head dimension is 32
because vLLM's CPU attention serves 32, 64 and 128 only.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_steer.microworld import tokenizer as words
from verl_steer.torchvision_ops import ensure_torchvision

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

HIDDEN, LAYERS, HEADS, HEAD_DIM, INTERMEDIATE = 128, 3, 4, 32, 384
VISION_HIDDEN, VISION_DEPTH, VISION_HEADS, VISION_INTERMEDIATE = 64, 2, 2, 192
INIT = 0.08  # about 1/sqrt(hidden); the default 0.02 is for widths in the thousands and starts this one asleep
LOOK_BACK, LOOK_BACK_PAIRS = 8.0, 4  # size of the biases of `_look_back`, and how many of the fastest angles they use
PATCH, MERGE = 14, 2  # 84x84 pixels -> 36 patches -> 9 image tokens


def build_processor() -> Qwen2_5_VLProcessor:
    """Tokenizer, image processor and chat template, as they are saved with the student."""
    ensure_torchvision()  # the video processor's module imports it
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    sizes: dict[str, Any] = {"min_pixels": 28 * 28, "max_pixels": 168 * 168, "patch_size": PATCH, "merge_size": MERGE}
    tokenizer = words.build()
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )


def build_model(seed: int, vocabulary: Any) -> Qwen2_5_VLForConditionalGeneration:
    """A student with random weights.

    Args:
        seed: Of the initial weights.
        vocabulary: The tokenizer; its length and special tokens enter the configuration.
    """
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token(name: str) -> int:
        return int(vocabulary.convert_tokens_to_ids(name))

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 4096,
            "initializer_range": INIT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": token(words.EOS),
            "pad_token_id": token(words.PAD),
        },
        vision_config={
            "depth": VISION_DEPTH,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": VISION_INTERMEDIATE,
            "num_heads": VISION_HEADS,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "initializer_range": INIT,
            "fullatt_block_indexes": list(range(VISION_DEPTH)),
        },
        image_token_id=token(words.IMAGE_PAD),
        video_token_id=token(words.VIDEO_PAD),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    _look_back(model.model.language_model.layers[0].self_attn, config.text_config.rope_parameters["rope_theta"])
    ends = [token(words.EOS), token(words.PAD)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=token(words.PAD), do_sample=False)
    return model


def _look_back(attention: Any, theta: float) -> None:
    """Lets the first head attend, at birth, to the token before.

    What a token means here is told by the word before it ("star sealed", "star say"), and a model this small
    finds that out late, at a step that differs by hundreds from seed to seed; given it, both look-ups, in the
    picture and in the dialogue, form early. Rotary angles turn by theta^(-k / pairs) a token in pair k, so biases
    that stand at that angle to each other agree best one token apart.
    """
    import torch

    pairs = HEAD_DIM // 2
    with torch.no_grad():
        for k in range(LOOK_BACK_PAIRS):
            angle = theta ** (-k / pairs)
            attention.q_proj.bias[k] = LOOK_BACK * math.cos(angle)
            attention.q_proj.bias[k + pairs] = -LOOK_BACK * math.sin(angle)
            attention.k_proj.bias[k] = LOOK_BACK


def save(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path) -> None:
    """Writes a folder that AutoModelForImageTextToText, AutoProcessor and AutoTokenizer load."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
