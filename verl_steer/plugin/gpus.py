"""How many GPUs a run asks for, who takes them, and whether the cluster has them.

verl learns only in its last process that a pool cannot be placed; Ray then waits for ever, or the student has
been loaded in vain. The sum is known from the configuration alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin.checks import Problem


@dataclass(frozen=True)
class Share:
    """A resource pool of the run.

    Attributes:
        who: Who works there.
        gpus: How many GPUs it has.
        how: Where the number comes from.
    """

    who: str
    gpus: int
    how: str

    def __str__(self) -> str:
        return f"{self.who} {self.gpus} ({self.how})"


def shares(config: DictConfig) -> list[Share]:
    """The pools that this configuration makes, the student's first (verl/trainer/ppo/v1/trainer_base.py:788)."""

    def selected(key: str) -> Any:
        return OmegaConf.select(config, key)

    pools = [
        ("student", "trainer", True),
        # Elsewhere verl ignores these two keys of the rollout: it lives on the student's GPUs.
        ("rollout", "actor_rollout_ref.rollout", selected("trainer.v1.trainer_mode") == "separate_async"),
        ("reward model", "reward.reward_model", selected("reward.reward_model.enable_resource_pool")),
        ("distillation", "distillation", selected("distillation.enabled")),
        ("tutor", "steer.tutor.managed", selected("steer.tutor.kind") == "managed"),
    ]
    found = []
    for who, node, wanted in pools:
        if wanted:
            sizes = (f"{node}.nnodes", f"{node}.n_gpus_per_node")
            nodes, each = (int(OmegaConf.select(config, key, default=1)) for key in sizes)
            found.append(Share(who, nodes * each, f"{node}.nnodes={nodes} x n_gpus_per_node={each}"))
    return found


def needed(config: DictConfig) -> int:
    """GPUs of all pools together; on a machine without any, the *names* that Ray has to offer."""
    return sum(share.gpus for share in shares(config))


def describe(config: DictConfig) -> str:
    """The sum, written out."""
    found = shares(config)
    return f"{' + '.join(map(str, found))} = {needed(config)} GPUs"


def find_room(config: DictConfig) -> str:
    """`check_room` where there are several pools: verl itself says early that the student's own one is too large.

    Raises:
        Problem: The pools do not fit.
    """
    return check_room(config) if len(shares(config)) > 1 else describe(config)


def check_room(config: DictConfig) -> str:
    """The cluster has room for all pools.

    Raises:
        Problem: It has not; with the sum.
    """
    have, where = _offered(config)
    if needed(config) > have:
        tutor = any(share.who == "tutor" for share in shares(config))
        elsewhere = ", or serve the tutor elsewhere and set steer.tutor.kind=endpoint" if tutor else ""
        raise Problem(
            f"{describe(config)}, but {where} has {have}. Take fewer for one of them, or add a machine{elsewhere}"
        )
    return f"{describe(config)} of {have} ({where})"


def _offered(config: DictConfig) -> tuple[int, str]:
    """(GPUs that Ray will offer this run, whose they are)."""
    declared = OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus")
    if declared is not None:
        return int(declared), f"ray_kwargs.ray_init.num_gpus={declared}"
    joined = _cluster()
    if joined is not None:
        return joined, "the running Ray cluster"
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0, "this machine"


def _cluster() -> int | None:
    """GPUs of the Ray cluster that `ray.init` would join; None if none runs."""
    import ray
    from verl.plugin.platform import get_platform

    if ray.is_initialized():
        resources = ray.cluster_resources()
    else:
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        except ConnectionError:
            return None
        try:
            resources = ray.cluster_resources()
        finally:
            ray.shutdown()
    return int(resources.get(get_platform().ray_resource_name(), 0))
