"""The platform `cpu`: what verl asks of a device, answered by a machine that has none.

Ray counts workers by a resource named GPU and verl's pools ask for one a worker, so that name is kept
(`ray_init.num_gpus` declares it); nothing runs on a GPU.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _peak_bytes(*_: Any, **__: Any) -> int:
    """Peak resident memory of this process, in bytes (Linux reports kilobytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _nothing(*_: Any, **__: Any) -> None:
    """An accelerator's housekeeping, with no accelerator."""


def _device_module() -> ModuleType:
    """`torch.cpu` and the functions of `torch.cuda` that verl calls besides."""
    module = ModuleType("verl_steer.plugin.cpu.device")
    for name in dir(torch.cpu):
        if not name.startswith("__"):
            setattr(module, name, getattr(torch.cpu, name))
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(module, name, _peak_bytes)
    for name in (
        "empty_cache",
        "ipc_collect",
        "set_per_process_memory_fraction",
        "reset_peak_memory_stats",
        "set_device",
        "manual_seed",
        "manual_seed_all",
    ):
        setattr(module, name, _nothing)
    # verl/utils/flops_counter.py looks the name up in its table of peak rates.
    module.get_device_name = lambda *_: "CPU"  # type: ignore[attr-defined]
    module.mem_get_info = lambda *_: _memory_info()  # type: ignore[attr-defined]
    module.get_rng_state = lambda *_: torch.get_rng_state()  # type: ignore[attr-defined]
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)  # type: ignore[attr-defined]
    return module


def _memory_info() -> tuple[int, int]:
    """(available, total) bytes of this machine's memory."""
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


_DEVICE_MODULE = _device_module()


@PlatformRegistry.register("cpu")
class CpuPlatform(PlatformBase):
    """verl on the host's own cores, with gloo between the workers."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        from verl_steer.plugin.cpu import is_cpu

        return is_cpu()

    def current_device(self) -> torch.device:  # type: ignore[override]
        # verl passes this on to `.to(…)`; an index would mean a GPU there.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        _nothing(device_index)

    def synchronize(self, device_index: int | None = None) -> None:
        _nothing(device_index)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        _nothing(settings)

    def empty_cache(self) -> None:
        _nothing()

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        with nullcontext():
            yield

    def profiler_start(self) -> None:
        _nothing()

    def profiler_stop(self) -> None:
        _nothing()

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        # Weights of another engine's server then travel by shared memory.
        return False

    def cudart(self) -> Any:
        return None
