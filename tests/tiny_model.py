"""A random Qwen2.5-VL small enough for tests, built without any network: model, tokenizer, processor."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel as ByteLevelDecoder

from verl_steer.torchvision_ops import ensure_torchvision

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Qwen2.5-VL's own template, without its tool part.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_vlm(
    path: str | Path,
    seed: int = 0,
    *,
    vocabulary: Tokenizer | None = None,
    max_pixels: int = 112 * 112,
    positions: int = 2048,
) -> Path:
    """Writes a folder that AutoModelForImageTextToText and AutoProcessor load.

    A byte-level tokenizer of 263 tokens, two text layers of width 64 with head dimension 32 and two
    key-value heads, a vision tower of one layer; a picture of 56 x 56 pixels gives 4 vision tokens.

    Args:
        path: Folder to write; made if absent.
        seed: Of the random weights.
        vocabulary: Instead of bytes, a byte-level BPE without special tokens.
        max_pixels: Larger pictures are made smaller; 28 x 28 pixels give a token.
        positions: The longest text.

    Returns:
        The folder.
    """
    ensure_torchvision()
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    path = Path(path)
    tokenizer = _tokenizer(vocabulary or _bytes())

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    sizes = {"min_pixels": 28 * 28, "max_pixels": max_pixels, "patch_size": 14, "merge_size": 2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 1,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "fullatt_block_indexes": [0],
        },
        **vision_tokens(token),
        tie_word_embeddings=True,
    )
    return save_random(Qwen2_5_VLForConditionalGeneration, config, processor, path, seed)


def vision_tokens(token) -> dict:
    """The ids that a configuration of this family wants of its tokenizer."""
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def save_random(model_class, config, processor, path: Path, seed: int) -> Path:
    """Saves a model of random weights with its processor; it stops at either of Qwen's two end tokens."""
    import torch
    from transformers import GenerationConfig

    torch.manual_seed(seed)
    model = model_class(config)
    end, pad = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def _bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return core


def byte_tokenizer(chat_template: str = CHAT_TEMPLATE, core: Tokenizer | None = None):
    """Qwen's special tokens over bytes (263 tokens), or over another core."""
    return _tokenizer(core or _bytes(), chat_template)


def _tokenizer(core: Tokenizer, chat_template: str = CHAT_TEMPLATE):
    from transformers import Qwen2TokenizerFast

    core.decoder = ByteLevelDecoder()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    core.add_special_tokens(list(SPECIAL))
    return Qwen2TokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=chat_template,
    )
