"""A value model for vision-language students: what PPO's critic is made of.

verl builds a critic with `load_valuehead_model` (verl/utils/model.py:641), which asks for a token classifier (there is
none for Qwen2.5-VL and its kin), then for the package trl, and insists on flash attention. Here a student that sees
becomes its own critic: the same model with `lm_head` replaced by one output a token, so that its logits are values.
A verl with patches/vision-language-value-model.patch builds such critics itself, and this module stands aside.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import torch


def install(module: ModuleType) -> None:
    """Replaces `load_valuehead_model` of verl/utils/model.py for students that see; others keep verl's own."""
    original = module.load_valuehead_model
    if "vision_language_value_model" in inspect.getsource(original):
        return

    def load_valuehead_model(
        local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool
    ) -> Any:
        from transformers import AutoModelForImageTextToText

        if type(model_config) in AutoModelForImageTextToText._model_mapping:
            return load_value_model(local_path, torch_dtype, model_config, trust_remote_code)
        return original(local_path, torch_dtype, model_config, trust_remote_code)

    module.load_valuehead_model = load_valuehead_model  # type: ignore[attr-defined]


def load_value_model(path: str, dtype: torch.dtype, config: Any, trust_remote_code: bool) -> torch.nn.Module:
    """The student at `path` with a value head.

    Args:
        path: Folder of a vision-language checkpoint.
        dtype: Of the parameters.
        config: Its configuration; `critic.model.override_config.attn_implementation` is in it, and is respected.
        trust_remote_code: As everywhere in verl.

    Returns:
        A model whose output's `logits` are values, (rows, tokens, 1). The head starts at zero: every value is 0 until
        the critic has learned, on every rank, whatever the seed.

    Raises:
        ValueError: The model's output layer is not a linear `lm_head`.
    """
    from transformers import AutoModelForImageTextToText

    attention = getattr(config, "_attn_implementation", None)
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=dtype,
        config=config,
        trust_remote_code=trust_remote_code,
        **({"attn_implementation": attention} if attention else {}),
    )
    head = getattr(model, "lm_head", None)
    if not isinstance(head, torch.nn.Linear):
        raise ValueError(
            f"{type(model).__name__} has no linear lm_head to turn into a value head; critics are made of Qwen2-VL, "
            "Qwen2.5-VL, Qwen3-VL and models built like them"
        )
    values = torch.nn.Linear(head.in_features, 1, bias=False, dtype=dtype, device=head.weight.device)
    torch.nn.init.zeros_(values.weight)
    model.lm_head = values
    # The head is no longer the embedding: nothing may tie, save or load it as such.
    for part in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        part.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    return model
