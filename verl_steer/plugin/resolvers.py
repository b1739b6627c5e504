"""OmegaConf resolvers of the recipes: values that depend on the machine or on the student.

A recipe must work by itself on a laptop and not leave a laptop's values behind on a cluster. So the
embedded default's sizes are written as `${steer.embedded:SMALL,REAL}`: SMALL holds only while
`actor_rollout_ref.model.path` is the embedded student.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.config import world_root


def world_place(root: DictConfig) -> tuple[Path, int]:
    """(cache folder, seed) of the embedded world of this configuration."""
    return world_root(OmegaConf.select(root, "steer.world.root")), int(
        OmegaConf.select(root, "steer.world.seed", default=0)
    )


def world_paths(root: DictConfig) -> Any:
    """Where the embedded world of this configuration lies (it need not exist yet)."""
    return importlib.import_module("verl_steer.microworld.prepare").paths(*world_place(root))


def uses_embedded_student(root: DictConfig) -> bool:
    """True while the student is the micro-world's own."""
    return str(OmegaConf.select(root, "actor_rollout_ref.model.path")) == str(world_paths(root).student)


def register_all() -> None:
    """Registers `steer.world`, `.embedded`, `.cpu`, `.estimator`, `.sampler`, `.when`, `.any`, `.sum`, `.pictures` and `.gpus`; safe to call again."""

    def world(name: str, _root_: DictConfig) -> str:
        return str(getattr(world_paths(_root_), name))

    def embedded(small: Any, real: Any, _root_: DictConfig) -> Any:
        return small if uses_embedded_student(_root_) else real

    def cpu(on_cpu: Any, otherwise: Any) -> Any:
        from verl_steer.plugin.cpu import is_cpu

        return on_cpu if is_cpu() else otherwise

    def estimator(credit: str | None) -> str:
        return {"turn": "steer_turn", "final": "steer_final"}.get(str(credit), "steer_grpo")

    def when(condition: Any, then: Any, otherwise: Any) -> Any:
        return then if condition else otherwise

    def gpus(_root_: DictConfig) -> int:
        # checks.py stands on verl, which loads this module while it is loading itself.
        return int(importlib.import_module("verl_steer.plugin.gpus").needed(_root_))

    def pictures(_root_: DictConfig) -> int | None:
        rollout = _root_.actor_rollout_ref.rollout
        return rollout.get("limit_images") if rollout.name == "vllm" else None  # no other server has such a limit

    def sampler(trainer_mode: str) -> str:
        return "SteerReplayBuffer" if trainer_mode == "sync" else "SteerReplayBufferAsync"

    OmegaConf.register_new_resolver("steer.when", when, replace=True)
    OmegaConf.register_new_resolver("steer.any", lambda *values: any(values), replace=True)
    OmegaConf.register_new_resolver("steer.sum", lambda *values: sum(values), replace=True)
    OmegaConf.register_new_resolver("steer.gpus", gpus, replace=True)
    OmegaConf.register_new_resolver("steer.pictures", pictures, replace=True)
    OmegaConf.register_new_resolver("steer.sampler", sampler, replace=True)
    OmegaConf.register_new_resolver("steer.estimator", estimator, replace=True)
    OmegaConf.register_new_resolver("steer.world", world, replace=True)
    OmegaConf.register_new_resolver("steer.embedded", embedded, replace=True)
    OmegaConf.register_new_resolver("steer.cpu", cpu, replace=True)
