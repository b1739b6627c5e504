"""A random Qwen2.5-VL whose constrained replies are complete and keep the usefulness lock.

The JSON schema of an assessment cannot say that safety limits usefulness, so a model of purely random
weights breaks that lock about every second time, and it seldom ends a sentence. This one is pushed, not
taught: one hidden dimension is made the same for every token and no layer writes to it, which turns the
output layer's column of it into a bias. The bias all but forbids the digits 0 to 5 and 9 (safety 6 to 8
allows usefulness up to 8) and ends a string after some ten bytes. Everything else the random weights and
the sampling decide; the layers are scaled up, or one reply among 5,000 tokens of prompt would change
nothing and siblings would all get one verdict. Ask it at temperature 1.
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import build_tiny_vlm

from verl_steer.torchvision_ops import ensure_torchvision

MAX_TOKENS = 16_384  # a tutor's rubric alone is 4,500 tokens for a tokenizer of bytes
_DIMENSION = 0
_EMBEDDED = 4.0  # of the order of what the scaled layers add to the other dimensions
_LAYER_SCALE = 10.0  # from transformers' 0.02 to 0.2, about 1.6 / sqrt(width): layers that mix
_HEAD_STD = 0.15  # logits of a spread near one
_BIAS = {'"': 4.0} | dict.fromkeys("0123459", -20.0)


def build_tiny_tutor(path: Path) -> Path:
    """Writes the tutor's folder and returns it."""
    ensure_torchvision()
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    build_tiny_vlm(path, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    embeddings = model.get_input_embeddings().weight
    head = torch.nn.Linear(embeddings.shape[1], embeddings.shape[0], bias=False)
    torch.manual_seed(1)
    with torch.no_grad():
        embeddings *= 1 / embeddings.std()
        embeddings[:, _DIMENSION] = _EMBEDDED
        for layer in model.model.language_model.layers:
            for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
                linear.weight *= _LAYER_SCALE
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight[_DIMENSION] = 0.0
        head.weight.normal_(std=_HEAD_STD)
        head.weight[:, _DIMENSION] = 0.0
        for text, bias in _BIAS.items():
            head.weight[tokenizer.convert_tokens_to_ids(text), _DIMENSION] = bias
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False
    model.config.text_config.max_position_embeddings = MAX_TOKENS
    model.save_pretrained(path)
    # A tied output layer would be the embedding again, and the bias gone.
    if json.loads((path / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]:
        raise RuntimeError(f"{path}/config.json still ties the output layer to the embedding")
    return path
