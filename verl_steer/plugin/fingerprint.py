"""Whose checkpoint is this? verl's `resume_mode: auto` takes over any checkpoint it finds.

With a fixed folder that silently continues another seed's or another student's training. So the
first start leaves a fingerprint beside the checkpoints, and a later start that differs is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.local.checkpoint import TRACKER
from verl_steer.whole import write_text

FILE = "steer_fingerprint.json"
#: A change of any of these makes another run of it: whatever decides what is learned from which rows. Batch and group
#: sizes belong: the data order depends on them. Where the tutor is served does not, nor does how the work is shared out.
_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
_OPTIM = ("lr", "lr_scheduler_type", "lr_warmup_steps", "lr_warmup_steps_ratio", "weight_decay", "clip_grad")
_LORA = ("lora_rank", "lora_alpha", "target_modules", "exclude_modules")
_LOSS = (
    *("policy_loss", "loss_agg_mode", "loss_scale_factor", "entropy_coeff", "ppo_mini_batch_size", "ppo_epochs"),
    *("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "use_kl_loss", "kl_loss_coef", "kl_loss_type"),
)
_ALGORITHM = (
    *("adv_estimator", "norm_adv_by_std_in_grpo", "gamma", "lam", "use_kl_in_reward", "kl_penalty", "kl_ctrl"),
    *("filter_groups.enable", "filter_groups.metric", "rollout_correction"),
)
_DIALOGUE = ("feedback", "max_turns", "max_turn_tokens", "stop", "min_scored")
KEYS = (
    "actor_rollout_ref.model.path",
    "data.seed",
    "data.train_batch_size",
    "data.max_response_length",
    *(f"actor_rollout_ref.model.{name}" for name in _LORA),
    *(f"{_ACTOR}.{name}" for name in _LOSS),
    *(f"{_ACTOR}.optim.{name}" for name in _OPTIM),
    *(f"{_ROLLOUT}.{name}" for name in ("n", "temperature", "top_p", "top_k")),
    *(f"algorithm.{name}" for name in _ALGORITHM),
    "critic.optim.lr",
    "trainer.v1.trainer_mode",
    "steer.seed",
    "steer.reward",
    "steer.advantage",
    *(f"steer.dialogue.{name}" for name in _DIALOGUE),
    "steer.tutor.model",
    "steer.tutor.custom",
    "steer.tutor.managed.path",
)
#: The same of an SFT run.
SFT_KEYS = (
    "model.path",
    "data.seed",
    "data.train_batch_size",
    "data.max_length",
    *(f"model.{name}" for name in _LORA),
    *(f"optim.{name}" for name in _OPTIM),
    "steer.sft.freeze_vision",
)


class ForeignCheckpointError(RuntimeError):
    """The folder holds the checkpoints of a different run."""


def fingerprint(config: DictConfig, train_files: list[Path], keys: tuple[str, ...] = KEYS) -> dict[str, Any]:
    """What identifies a run: the values of `keys` and the content of its training files.

    A node's values are taken one by one; a key that the configuration lacks is None.
    """
    digest = hashlib.sha256()
    for path in train_files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    values: dict[str, Any] = {}
    for key in keys:
        found = OmegaConf.select(config, key)
        plain = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
        if not isinstance(plain, dict):
            values[key] = plain
        else:  # `_target_` names the class that holds the node, which decides nothing
            values |= {f"{key}.{name}": value for name, value in plain.items() if name != "_target_"}
    return {**values, "data.train_files": digest.hexdigest()}


def check_resume(config: DictConfig, mine: dict[str, Any]) -> str:
    """Refuses a foreign checkpoint, repairs a tracker file that a kill left empty, says what will happen.

    Raises:
        ForeignCheckpointError: The folder's checkpoints are of another run.
    """
    folder = Path(str(OmegaConf.select(config, "trainer.default_local_dir"))).expanduser()
    steps = sorted(
        int(p.name.removeprefix("global_step_")) for p in folder.glob("global_step_*") if p.name[12:].isdigit()
    )
    mode = str(OmegaConf.select(config, "trainer.resume_mode"))
    if not steps or mode == "resume_path":
        return "a new run"
    theirs = _read(folder / FILE)
    # A readable one without a key is of an older version, which did not look at it.
    different = [key for key in mine if theirs.get(key, None if not theirs else mine[key]) != mine[key]]
    if different:
        lines = "".join(f"\n  {key}: there {theirs.get(key)!r}, here {mine[key]!r}" for key in different)
        raise ForeignCheckpointError(
            f"trainer.default_local_dir={folder} holds checkpoints of another run (steps {steps}):{lines}\n"
            "Choose another trainer.default_local_dir or trainer.experiment_name. To go on from one of them on purpose, set "
            "trainer.resume_mode=resume_path and trainer.resume_from_path."
        )
    tracker = folder / TRACKER
    # verl writes actor, data and then the tracker: without one, the newest step may be torn, and verl starts anew.
    if mode != "auto" or not tracker.is_file():
        return "a new run"
    if not tracker.read_text().strip():
        # It is written in place, last of all: an empty one means that its step was complete.
        write_text(tracker, str(steps[-1]))
        return f"resumes from step {steps[-1]} (its tracker file was empty and has been written again)"
    return f"resumes from step {tracker.read_text().strip()}"


def remember(config: DictConfig, mine: dict[str, Any]) -> None:
    """Leaves the fingerprint beside the checkpoints to come; a run that only validates makes none."""
    if OmegaConf.select(config, "trainer.val_only", default=False):
        return
    folder = Path(str(OmegaConf.select(config, "trainer.default_local_dir"))).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, json.dumps(mine, indent=1, sort_keys=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # checkpoints without a readable fingerprint are foreign: every key differs
    return content if isinstance(content, dict) else {}
