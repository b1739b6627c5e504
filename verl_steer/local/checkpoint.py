"""From a training run to a folder that transformers loads: one command from a checkpoint to the bench."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from typing import Any

from verl_steer.data.parts import file_hash

_STEP = re.compile(r"global_step_(\d+)")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
#: verl writes it after everything else of a checkpoint.
TRACKER = "latest_checkpointed_iteration.txt"
#: verl writes it beside the shards of a LoRA run.
LORA = "lora_train_meta.json"
# RL writes the first, SFT the second; a folder that was exported by hand is itself one.
_INSIDE = ("actor/huggingface", "huggingface", ".")
# transformers loads under patches of the whole process. Two loads at once, in threads, leave one of them in place: tied weights
# stay random then, in these models and in every later one of the process (huggingface/transformers#44940).
_LOADING = threading.Lock()


class CheckpointError(RuntimeError):
    """There is no model; the message says what would write one."""


def find(path: Path) -> Path:
    """The Hugging Face folder of a model.

    Args:
        path: Such a folder, a `global_step_N` of verl, or a run's folder: then its newest step counts.

    Raises:
        CheckpointError: There is none; the message says what would write one.
    """
    if not path.is_dir():
        raise CheckpointError(f"--checkpoint {path} is not a folder")
    steps = {int(m[1]): p for p in path.iterdir() if p.is_dir() and (m := _STEP.fullmatch(p.name))}
    if steps:
        return find(steps[max(steps)])
    for inside in _INSIDE:
        folder = path / inside
        if (folder / "config.json").is_file():
            if folder.name == "huggingface" and (folder.parent / LORA).is_file():
                raise CheckpointError(
                    f"{folder.parent} is of a LoRA run, whose huggingface folder holds no model that can be loaded: "
                    f"python -m verl_steer.local.merge_lora {folder.parent} --out MODEL"
                )
            if any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
                return folder.resolve()
            raise CheckpointError(
                f"{folder} holds a configuration but no weights: train with hf_model in "
                "actor_rollout_ref.actor.checkpoint.save_contents, or merge the shards of this step: "
                f"python -m verl.model_merger merge --backend fsdp --local_dir {folder.parent} --target_dir MODEL"
            )
    raise CheckpointError(
        f"{path} holds no model: give a Hugging Face folder (config.json and weights), a global_step_N of verl, or a "
        "run's folder that holds some"
    )


def reached(run: Path) -> int:
    """The step of a run's newest whole checkpoint; 0 without one."""
    tracker = run / TRACKER
    text = tracker.read_text().strip() if tracker.is_file() else ""
    return int(text) if text.isdigit() else 0


def weights_hash(folder: Path) -> str:
    """Twelve digits that tell the weights in a Hugging Face folder from others at the same path."""
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if len(files) == 1:
        return file_hash(files[0])[:12]
    return hashlib.sha256("".join(f"{path.name} {file_hash(path)}\n" for path in files).encode()).hexdigest()[:12]


def model_of(folder: Path, dtype: str) -> Any:
    """The model in a folder, on the CPU; every weight of it comes from there.

    Args:
        folder: As `checkpoint.find` gives it.
        dtype: Name of a torch dtype.

    Raises:
        CheckpointError: The folder lacks weights of the model, which transformers would draw at random.
    """
    import torch

    from verl_steer.torchvision_ops import ensure_torchvision

    ensure_torchvision()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = type(AutoConfig.from_pretrained(folder)) in AutoModelForImageTextToText._model_mapping
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with _LOADING:
        model, said = auto.from_pretrained(folder, dtype=getattr(torch, dtype), output_loading_info=True)
    if said["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks {len(said['missing_keys'])} weights of its {type(model).__name__} (the first: "
            f"{min(said['missing_keys'])}): it is no model of this kind, or an adapter"
        )
    return model
