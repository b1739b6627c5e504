"""Training without a GPU: platform, FSDP2 engine and a transformers rollout, as verl plugins.

An entry point of its own, so that a cluster can leave it out, and it never chooses itself where a
GPU build of torch is installed: on a cluster, an actor that happens to see no GPU must not become a
CPU worker. Like the plugin's other entry point it only asks to be called when verl loads the modules
that it extends.
"""

from __future__ import annotations

import importlib
import os

from verl_steer import torchvision_ops
from verl_steer.plugin import compat, hooks


def is_cpu() -> bool:
    """Whether training in this installation runs without a GPU.

    `VERL_PLATFORM`, verl's own variable, decides; then `VERL_STEER_DEVICE` (cpu, cuda or auto); then
    the build of torch: one without CUDA, ROCm or NPU support can do nothing else.

    Raises:
        ValueError: VERL_STEER_DEVICE holds another word.
    """
    platform = os.environ.get("VERL_PLATFORM", "").strip().lower()
    if platform:
        return platform == "cpu"
    device = os.environ.get("VERL_STEER_DEVICE", "").strip().lower()
    if device not in ("", "auto", "cpu", "cuda"):
        raise ValueError(f"VERL_STEER_DEVICE={device}: must be cpu, cuda or auto")
    if device in ("cpu", "cuda"):
        return device == "cpu"
    import torch

    return torch.version.cuda is None and torch.version.hip is None and not hasattr(torch, "npu")


def _register_platform() -> None:
    from verl.plugin.platform import set_platform

    from verl_steer.plugin.cpu.platform import CpuPlatform  # registers the name "cpu" when it is loaded

    # Detection would choose by `nvidia-smi`, which may answer although torch has no CUDA.
    set_platform(CpuPlatform())


def _register_engines() -> None:
    importlib.import_module("verl_steer.plugin.cpu.engine")


def _register_rollout() -> None:
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY

    _ROLLOUT_REGISTRY[("hf", "async")] = "verl_steer.plugin.cpu.adapter.HfServerAdapter"


def _register_replica() -> None:
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("hf", _load_replica)


def _load_replica() -> type:
    from verl_steer.plugin.cpu.replica import HfReplica

    return HfReplica


def _install() -> None:
    # TransferQueue's own default of 8 makes it warn at every call on a machine with fewer cores.
    os.environ.setdefault("TQ_NUM_THREADS", str(min(8, os.cpu_count() or 1)))
    compat.install(cpu=True)
    torchvision_ops.install()
    hooks.after_import("verl.plugin.platform", _register_platform)
    hooks.after_import("verl.workers.engine.fsdp.transformer_impl", _register_engines)


# By name only, so everywhere: beside a GPU, `rollout.name=hf` generates on the host's cores.
hooks.after_import("verl.workers.rollout.base", _register_rollout)
hooks.after_import("verl.workers.rollout.replica", _register_replica)
if is_cpu():
    hooks.guard("training without a GPU", _install)
