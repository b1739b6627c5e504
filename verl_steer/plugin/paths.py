"""Paths mean to verl what they mean to preflight: the same file, in every process and on every node.

verl expands no `~`, and joins a relative path with the working folder of the process that uses it. In a cluster that
this command starts, that is the folder it was called in; workers of a cluster that was there before run where `ray start` was called.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_steer.plugin.checks import Problem

KEYS = (
    "actor_rollout_ref.model.path",
    "data.train_files",
    "data.val_files",
    "trainer.default_local_dir",
    "trainer.resume_from_path",
    "steer.records.dir",
    "steer.dialogue.yoked_to",
    "steer.tutor.audit_dir",
    "steer.tutor.managed.path",
)
#: A name of the hub looks like a relative path; it is one if there is such a folder.
_MODELS = ("actor_rollout_ref.model.path", "model.path", "steer.tutor.managed.path")
#: Of stage II.
SFT_KEYS = ("model.path", "data.train_files", "data.val_files", "trainer.default_local_dir")


def mean_the_same(config: DictConfig) -> str:
    """Every path is one that all processes of a Ray job read alike.

    Raises:
        Problem: One begins with `~`, or is relative in a cluster that this command does not start.
    """
    return _same(config, KEYS, _joined(config))


def mean_the_same_under_torchrun(config: DictConfig) -> str:
    """Every path is one that all ranks of stage II read alike; no Ray is asked, for none takes part.

    Raises:
        Problem: One begins with `~`, or is relative while several nodes take part.
    """
    here, all_ranks = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    return _same(config, SFT_KEYS, f"torchrun starts {all_ranks} ranks on several nodes" if all_ranks > here else "")


def _same(config: DictConfig, keys: tuple[str, ...], joined: str) -> str:
    """Checks the paths at `keys`; `joined` says why processes may run in another folder, "" that they do not."""
    for key in keys:
        value = OmegaConf.select(config, key)
        for path in list(value) if isinstance(value, (list, ListConfig)) else [value]:
            if not path:
                continue
            if str(path).startswith("~"):
                raise Problem(f"{key}={path}: verl does not expand ~; give {Path(path).expanduser()}")
            relative = not Path(path).is_absolute() and not (key in _MODELS and not Path(path).exists())
            if joined and relative:
                raise Problem(
                    f"{key}={path}: {joined}, whose processes run in a folder of their own: a relative path would name another "
                    f"place there. Give {Path(path).absolute()}, on storage that every node sees"
                )
    return joined or "all from this folder"


def _joined(config: DictConfig) -> str:
    """Why workers may run in another folder; "" if this command starts them all."""
    if (nodes := int(OmegaConf.select(config, "trainer.nnodes", default=1) or 1)) > 1:
        return f"trainer.nnodes={nodes} needs a Ray cluster"
    if address := OmegaConf.select(config, "ray_kwargs.ray_init.address") or os.environ.get("RAY_ADDRESS"):
        return f"the run joins the Ray cluster at {address}"
    # Whatever `ray start` left running here is joined without being named, but not with a declared number of GPUs.
    if OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus") is None and (found := _running_here()):
        return f"the run joins the Ray cluster that runs here ({found})"
    return ""


def _running_here() -> str | None:
    """The address that `ray.init()` would join by itself; it leaves a cluster alone that does not answer any more."""
    from ray._private.services import find_bootstrap_address

    address = find_bootstrap_address(None)
    host, _, port = (address or "").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except (OSError, ValueError):
        return None
    return address
