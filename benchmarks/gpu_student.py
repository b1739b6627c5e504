"""A student of a real geometry with random weights: nothing is downloaded, nothing is learned, everything has its real size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from verl_steer.torchvision_ops import ensure_torchvision

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_model import CHAT_TEMPLATE, SPECIAL, byte_tokenizer

GEOMETRY = Path(__file__).parent / "geometry"


def build_student(folder: Path, geometry: str, bf16: bool, seed: int = 0) -> Path:
    """Writes model, tokenizer and processor.

    The tokenizer knows bytes, then words that no text contains, then Qwen's special tokens: as many as the
    head has rows, so that the rollout and the trainer normalise over the same vocabulary.

    Args:
        folder: To write; made if absent.
        geometry: A file of `geometry/`, without its ending.
        bf16: Store the weights in bf16, else fp32.
        seed: Of the weights.

    Returns:
        The folder.
    """
    ensure_torchvision()
    import torch
    from transformers import (
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    plan = json.loads((GEOMETRY / f"{geometry}.json").read_text())
    tokenizer = byte_tokenizer(CHAT_TEMPLATE, _filled(plan["text_config"]["vocab_size"] - len(SPECIAL)))
    token = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in SPECIAL}
    for key, name in (
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ):
        plan[key] = token[name]
    plan["text_config"] |= {
        "bos_token_id": None,
        "eos_token_id": token["<|im_end|>"],
        "pad_token_id": token["<|endoftext|>"],
    }
    sizes = {"min_pixels": 28 * 28, "max_pixels": 448 * 448, "patch_size": 14, "merge_size": 2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration._from_config(
        Qwen2_5_VLConfig(**plan), dtype=torch.bfloat16 if bf16 else torch.float32
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[token["<|im_end|>"], token["<|endoftext|>"]], pad_token_id=token["<|endoftext|>"]
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _filled(size: int) -> Tokenizer:
    """Bytes, and words up to `size` tokens. No merge makes the words: they can be sampled, never read."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{number}" for number in range(size - len(alphabet))]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet + words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return core
