"""The shape of a student: what sizes, memory and attention heads are computed from.

Read from `config.json` alone. Parameters are counted on a model without storage (torch's meta device),
so the count is that of the real class, tied embeddings and vision tower included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin.checks import Problem
from verl_steer.torchvision_ops import ensure_torchvision


@dataclass(frozen=True)
class Linear:
    """A linear layer: its dotted name, features in, features out."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Geometry:
    """Counts of one model.

    Attributes:
        parameters: All of them; tied ones once.
        layer: Parameters of one decoder layer, the unit that FSDP gathers.
        ends: Parameters of embedding and head, the unit that stays gathered.
        layers: Decoder layers.
        hidden: Width of the text model.
        intermediate: Width of its feed-forward part.
        vocabulary: Rows of the head.
        attention_heads: Of the text model.
        key_value_heads: Likewise.
        head_dim: Features of one head.
        linears: Every linear layer but the head, where LoRA may go.
    """

    parameters: int
    layer: int
    ends: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    linears: tuple[Linear, ...]

    def adapted(self, target: str | list[str] | None, exclude: str | list[str] | None) -> list[Linear]:
        """The layers that an adapter goes into.

        Args:
            target: `model.target_modules`: "all-linear", a pattern, or endings of names, as peft reads them.
            exclude: `model.exclude_modules`: a pattern, endings of names, or None.
        """
        return [
            layer
            for layer in self.linears
            if (target == "all-linear" or _matches(layer.name, target)) and not _matches(layer.name, exclude)
        ]

    def lora_parameters(self, rank: int, target: str | list[str] | None, exclude: str | list[str] | None) -> int:
        """Parameters of an adapter: rank x (inputs + outputs) of every layer it goes into; see `adapted`."""
        return sum(rank * (layer.inputs + layer.outputs) for layer in self.adapted(target, exclude))


def hf_config(config: DictConfig) -> Any:
    """The student's Hugging Face configuration.

    Raises:
        Problem: It cannot be read.
    """
    from transformers import AutoConfig

    path = str(OmegaConf.select(config, "actor_rollout_ref.model.path"))
    local = Path(path).expanduser()
    trust = bool(OmegaConf.select(config, "actor_rollout_ref.model.trust_remote_code", default=False))
    try:
        return AutoConfig.from_pretrained(str(local) if local.exists() else path, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise Problem(f"actor_rollout_ref.model.path={path}: config.json cannot be read: {error}") from error


def heads(student: Any) -> tuple[int, int]:
    """(attention heads, key-value heads) of the text model of a Hugging Face configuration."""
    text = student.get_text_config()
    return int(text.num_attention_heads), int(text.num_key_value_heads)


def measure(student: Any) -> Geometry:
    """Counts a model by its Hugging Face configuration; allocates nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    ensure_torchvision()
    family = AutoModelForImageTextToText if hasattr(student, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        model = family.from_config(student)
    text = student.get_text_config()
    attention_heads, key_value_heads = heads(student)
    decoder = getattr(model.model, "language_model", model.model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    # A tied head is the embedding itself.
    ends = {id(weight): weight.numel() for weight in (embedding.weight, head.weight)}
    return Geometry(
        parameters=sum(p.numel() for p in model.parameters()),
        layer=sum(p.numel() for p in decoder.layers[0].parameters()),
        ends=sum(ends.values()),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        intermediate=int(text.intermediate_size),
        vocabulary=int(text.vocab_size),
        attention_heads=attention_heads,
        key_value_heads=key_value_heads,
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // attention_heads),
        linears=tuple(
            Linear(name, module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        ),
    )


def _matches(name: str, pattern: str | list[str] | None) -> bool:
    """As peft: a string is a regular expression for the whole name, a list holds names or their endings."""
    if pattern is None:
        return False
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in pattern)
