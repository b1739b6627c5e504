"""Vision tower and projector frozen in verl's FSDP engines, which have no switch for it.

`actor.freeze_vision_tower` exists in verl 0.9.1 and is read by nobody. The recipe's switch travels in
`model.override_config`, the one free mapping that verl hands to the engine in every process, under `torchrun` and under
Ray. It is taken out of the model's configuration before the model is built, so no checkpoint carries it on.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

KEY = "steer_freeze_vision"
#: Names of the modules that see, in the families of transformers: Qwen-VL holds its projector inside `visual`.
VISION_MODULES = ("visual", "vision_tower", "vision_model", "multi_modal_projector", "mm_projector", "embed_vision")


def vision_parameters(model: Any) -> dict[str, Any]:
    """The parameters of vision tower and projector, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(part in VISION_MODULES for part in name.split(".")[:-1])
    }


def freeze_vision(model: Any) -> int:
    """Takes vision tower and projector out of training; returns how many numbers that are.

    Raises:
        ValueError: The model has no such part.
    """
    found = vision_parameters(model)
    if not found:
        parts = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
        raise ValueError(
            f"steer.sft.freeze_vision=true: {type(model).__name__} has no part named {', '.join(VISION_MODULES)} (its parts: "
            f"{parts}); set steer.sft.freeze_vision=false for a student without eyes"
        )
    for parameter in found.values():
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in found.values())


def install(module: ModuleType) -> None:
    """Makes the FSDP engines of `verl.workers.engine.fsdp.transformer_impl` heed the switch."""
    original = module.FSDPEngine._build_module

    def _build_module(self: Any) -> Any:
        wanted = bool((self.model_config.override_config or {}).get(KEY, False))
        if hasattr(self.model_config.hf_config, KEY):
            delattr(self.model_config.hf_config, KEY)
        if wanted and self.engine_config.strategy == "fsdp" and not self.engine_config.use_orig_params:
            raise ValueError(
                "steer.sft.freeze_vision=true with engine.strategy=fsdp: FSDP1 cannot hold trained and frozen parameters in "
                "one flat tensor; set engine.strategy=fsdp2 (or engine.use_orig_params=true)"
            )
        built = original(self)
        if wanted:
            frozen = freeze_vision(built)
            if self.rank == 0:
                total = sum(parameter.numel() for parameter in built.parameters())
                print(f"verl_steer: vision tower and projector frozen, {frozen:,} of {total:,} parameters", flush=True)
        return built

    module.FSDPEngine._build_module = _build_module
