"""A random Qwen3-VL small enough for tests: patches of 16 pixels, interleaved M-RoPE, DeepStack."""

from __future__ import annotations

from pathlib import Path

from tiny_model import CHAT_TEMPLATE, byte_tokenizer, save_random, vision_tokens

from verl_steer.torchvision_ops import ensure_torchvision

#: Qwen3-VL's template has no system prompt of its own.
QWEN3_TEMPLATE = CHAT_TEMPLATE.replace(
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}",
    "",
)


def build_tiny_qwen3_vl(path: str | Path, seed: int = 0) -> Path:
    """Writes a folder that AutoModelForImageTextToText and AutoProcessor load.

    A byte-level tokenizer of 263 tokens, three text layers of width 64, a vision tower of three layers, the
    first two of which feed the text model's first two layers (DeepStack); a picture of 64 x 64 pixels gives 4 tokens.

    Args:
        path: Folder to write; made if absent.
        seed: Of the random weights.

    Returns:
        The folder.
    """
    ensure_torchvision()
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    path = Path(path)
    tokenizer = byte_tokenizer(QWEN3_TEMPLATE)

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    sizes = {"patch_size": 16, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, min_pixels=32 * 32, max_pixels=128 * 128),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=QWEN3_TEMPLATE,
    )
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 1,
            "out_hidden_size": 64,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **vision_tokens(token),
        tie_word_embeddings=True,
    )
    return save_random(Qwen3VLForConditionalGeneration, config, processor, path, seed)
