"""Packages that a configuration asks for by what it sets: flash-attn, and the engine of a rollout.

verl imports them in its workers, after Ray has started and the weights have been read.
"""

from __future__ import annotations

from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from verl_steer.extras import install_command
from verl_steer.plugin.checks import Problem

#: Of tests/setup.sh.
FLASH_ATTN = "flash-attn==2.8.3"
#: What installs each rollout engine of verl that is a package of its own.
_ENGINES = {
    "vllm": install_command("gpu"),
    "sglang": 'run pip install -e . "verl[sglang]==0.9.1" in the clone of verl_steer, in an environment of its own (vLLM and SGLang '
    "pin what does not go together)",
}


def attention(
    config: DictConfig, node: str = "actor_rollout_ref.model", engine: str = "actor_rollout_ref.actor"
) -> str:
    """The attention that the student is built with is installed.

    Args:
        config: Of a trainer.
        node: The student's; verl's own default there is flash_attention_2 (verl/workers/config/model.py:185).
        engine: The node with its `strategy`: only the FSDP engines build the model by transformers' attention.

    Raises:
        Problem: It is flash attention, on a GPU, and flash-attn is not there.
    """
    key = f"{node}.override_config.attn_implementation"
    wanted = str(OmegaConf.select(config, key, default=None) or "flash_attention_2")
    by_transformers = str(OmegaConf.select(config, f"{engine}.strategy")).startswith("fsdp")
    if str(config.trainer.device) != "cuda" or not by_transformers or wanted != "flash_attention_2":
        return wanted
    if find_spec("flash_attn") is None:
        import torch

        raise Problem(
            f"{key}=flash_attention_2 (verl's default), but flash-attn is not installed: run pip install --no-build-isolation "
            f"{FLASH_ATTN} (it is compiled, so nvcc of CUDA {torch.version.cuda or 'as torch was built with'} must be on PATH), or do "
            f"without, slower: ++{key}=sdpa {node}.use_remove_padding=false"
        )
    return wanted


def rollout_engine(key: str, name: str) -> str:
    """The engine that plays dialogues, or serves a managed tutor, can be imported.

    Args:
        key: Where the configuration names it.
        name: vllm, sglang, or one that needs no package (hf).

    Raises:
        Problem: It cannot; names `key`.
    """
    if name in _ENGINES and find_spec(name) is None:
        raise Problem(f"{key}={name}, but {name} is not installed here: {_ENGINES[name]}")
    return name
