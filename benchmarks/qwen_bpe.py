"""Qwen's own vocabulary without a model hub: the file of merges that Alibaba's SDK `dashscope` ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from verl_steer.extras import install_command

# The pre-tokenizer of Qwen2's tokenizer.json, which Qwen2.5-VL and Qwen3-VL keep.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_bpe() -> Any:
    """A `tokenizers.Tokenizer` with Qwen's 151,643 byte-pair tokens and no special ones; takes some seconds.

    Raises:
        ImportError: `dashscope` or `tiktoken` (extra `dev`) is not installed.
    """
    from transformers.convert_slow_tokenizer import TikTokenConverter

    # Found, not imported: the SDK itself is of no use here.
    spec = importlib.util.find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"Qwen's vocabulary comes with the package dashscope: {install_command('dev')}")
    ranks = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    return TikTokenConverter(vocab_file=str(ranks), pattern=_SPLIT).converted()
