"""Whose checkpoint is this? verl's `resume_mode: auto` takes over any checkpoint it finds.

With a fixed folder that silently continues another seed's or another student's training. So the
first start leaves a fingerprint beside the checkpoints, and a later start that differs is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

FILE = "steer_fingerprint.json"
TRACKER = "latest_checkpointed_iteration.txt"
#: A change of any of these makes another run of it. Batch and group sizes belong: the data order depends on them. Where
#: the tutor is served does not.
KEYS = (
    "actor_rollout_ref.model.path",
    "data.seed",
    "data.train_batch_size",
    "actor_rollout_ref.rollout.n",
    "algorithm.adv_estimator",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.use_kl_loss",
    "actor_rollout_ref.actor.kl_loss_coef",
    "steer.seed",
    "steer.reward",
    "steer.dialogue.feedback",
    "steer.dialogue.max_turns",
    "steer.tutor.model",
    "steer.tutor.custom",
    "steer.tutor.managed.path",
)
#: The same of an SFT run.
SFT_KEYS = ("model.path", "data.seed", "data.train_batch_size", "steer.sft.freeze_vision")


class ForeignCheckpointError(RuntimeError):
    """The folder holds the checkpoints of a different run."""


def fingerprint(config: DictConfig, train_files: list[Path], keys: tuple[str, ...] = KEYS) -> dict[str, Any]:
    """What identifies a run: the values of `keys`, those of a node one by one, and the content of its training files."""
    digest = hashlib.sha256()
    for path in train_files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    values: dict[str, Any] = {}
    for key in keys:
        found = OmegaConf.select(config, key)
        plain = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
        values |= {f"{key}.{name}": value for name, value in plain.items()} if isinstance(plain, dict) else {key: plain}
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
        _write(tracker, str(steps[-1]))
        return f"resumes from step {steps[-1]} (its tracker file was empty and has been written again)"
    return f"resumes from step {tracker.read_text().strip()}"


def remember(config: DictConfig, mine: dict[str, Any]) -> None:
    """Leaves the fingerprint beside the checkpoints to come; a run that only validates makes none."""
    if OmegaConf.select(config, "trainer.val_only", default=False):
        return
    folder = Path(str(OmegaConf.select(config, "trainer.default_local_dir"))).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / FILE, json.dumps(mine, indent=1, sort_keys=True))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # checkpoints without a readable fingerprint are foreign: every key differs
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
