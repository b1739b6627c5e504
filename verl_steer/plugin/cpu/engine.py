"""verl's FSDP2 engines, registered for the CPU.

verl registers them for cuda and npu only (verl/workers/engine/fsdp/transformer_impl.py:1143, :1594).
They run on gloo as they are, with one exception: the forward-only reference model (:462) asks for
`CPUOffloadPolicy(pin_memory=True)`, which pins host memory for a device that does not exist, and
there is nothing to offload from either. A verl with patches/forward-only-pinned-memory.patch does
not ask for it, and builds its module undisturbed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

BACKENDS = ["fsdp", "fsdp2"]

#: Whether this verl asks for pinned memory on every device; the condition that its source lacks is the patch's.
PINS_MEMORY = 'if get_device_name() != "cpu":' not in inspect.getsource(FSDPEngineWithLMHead._build_fsdp_module)


class _WithoutOffload:
    """Mixed into verl's engines: builds the module with no offload policy."""

    engine_config: Any

    def __init__(self, model_config: Any, engine_config: Any, *args: Any, **kwargs: Any) -> None:
        if engine_config.strategy != "fsdp2":
            raise ValueError(
                f"strategy={engine_config.strategy}: FSDP1 cannot shard parameters that live on the CPU; set fsdp2 in "
                "actor.strategy, actor.fsdp_config.strategy, ref.strategy and ref.fsdp_config.strategy "
                "(the recipe steer_cpu does)"
            )
        super().__init__(model_config, engine_config, *args, **kwargs)

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        if not PINS_MEMORY:
            return super()._build_fsdp_module(module)  # type: ignore[misc,no-any-return]
        with _no_offload(self.engine_config):
            built: torch.nn.Module = super()._build_fsdp_module(module)  # type: ignore[misc]
        # What verl sets beside the policy: a forward-only engine moves nothing by itself.
        if self.engine_config.forward_only:
            self._is_offload_param = False
            self._is_offload_optimizer = False
        return built


@contextmanager
def _no_offload(engine_config: Any) -> Iterator[None]:
    """Hides the two switches that make verl build an offload policy, while the module is built."""
    kept = {name: getattr(engine_config, name) for name in ("forward_only", "offload_policy")}
    # The configuration is a frozen dataclass; verl's own code writes to it this way.
    for name in kept:
        object.__setattr__(engine_config, name, False)
    try:
        yield
    finally:
        for name, value in kept.items():
            object.__setattr__(engine_config, name, value)


@EngineRegistry.register(model_type="language_model", backend=BACKENDS, device="cpu")
class CpuEngineWithLMHead(_WithoutOffload, FSDPEngineWithLMHead):
    """The policy and the reference."""


@EngineRegistry.register(model_type="value_model", backend=BACKENDS, device="cpu")
class CpuEngineWithValueHead(_WithoutOffload, FSDPEngineWithValueHead):
    """The critic."""
