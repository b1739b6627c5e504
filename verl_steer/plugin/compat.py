"""Workarounds for verl 0.9.1, each one function, each with the patch that would make it needless.

Nothing of verl is edited on disk. Every workaround looks at the source of what it replaces: a verl
that carries the patch of the same name in `patches/` no longer contains the faulty line, and the
workaround stays out of its way. A replacement must be in place before other modules of verl bind the
name by `from … import …`, so each is applied by a post-import hook, right after its module has run.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any

from verl_steer.plugin import hooks

_applied: set[str] = set()


@dataclass(frozen=True)
class Workaround:
    """One fault of verl and its answer.

    Attributes:
        name: Also the stem of its file in `patches/`.
        why: What goes wrong without it, in one clause.
        module: verl's module that holds the fault.
        faulty: Tells from that loaded module whether this verl has the fault.
        apply: Replaces the faulty function inside that module.
        cpu_only: Needed only where training runs without a GPU.
    """

    name: str
    why: str
    module: str
    faulty: Callable[[ModuleType], bool]
    apply: Callable[[ModuleType], None]
    cpu_only: bool = False

    @property
    def patch(self) -> str:
        """The patch against verl that makes this needless, relative to the repository."""
        return f"patches/{self.name}.patch"

    @property
    def in_force(self) -> bool:
        """True when the fault was found and replaced in this process; imports the module to find out."""
        importlib.import_module(self.module)
        return self.name in _applied


def install(cpu: bool) -> None:
    """Arms every workaround; safe to call again, from either entry point.

    Args:
        cpu: True where training runs without a GPU: arms those that only such a machine needs, too.
    """
    for workaround in workarounds():
        if (cpu or not workaround.cpu_only) and workaround.name not in _armed:
            _armed.add(workaround.name)
            hooks.after_import(workaround.module, _application(workaround))


_armed: set[str] = set()


def workarounds() -> list[Workaround]:
    """All of them, armed or not."""
    return [
        Workaround(
            "equal-length-position-ids",
            "a vision-language batch whose sequences all have one length corrupts its M-RoPE positions",
            "verl.utils.tensordict_utils",
            lambda m: 'data["position_ids"]._ragged_idx = 2' in inspect.getsource(m.maybe_fix_3d_position_ids),
            _equal_length_position_ids,
        ),
        Workaround(
            "text-only-micro-batch",
            "a micro-batch without any image crashes a Qwen2-VL or Qwen2.5-VL student",
            "verl.models.transformers.qwen2_vl",
            lambda m: "image_embeds = model.visual(" in inspect.getsource(m._get_input_embeds),
            _text_only_micro_batch,
        ),
        Workaround(
            "duplicate-cpu-backend",
            "the process group asks for cpu:gloo twice: Duplicate device type",
            "verl.utils.distributed",
            lambda m: "cpu:gloo,{get_device_name()}" in inspect.getsource(m.initialize_global_process_group_ray),
            _duplicate_cpu_backend,
            cpu_only=True,
        ),
    ]


def _application(workaround: Workaround) -> Callable[[], None]:
    def run() -> None:
        module = importlib.import_module(workaround.module)
        if workaround.faulty(module):
            workaround.apply(module)
            _applied.add(workaround.name)

    return run


def _equal_length_position_ids(module: ModuleType) -> None:
    """verl/utils/tensordict_utils.py:910, called by verl/workers/engine/base.py:124 and engine_workers.py:252.

    The function repairs what pickling does to nested position ids of shape (batch, 4, length*): it
    declares dimension 2 ragged. But torch stores samples (4, L) that all have one L with dimension 1
    ragged (values (4·batch, L) instead of (4, Σ length)), and then the declaration is false: the
    update crashes in split_with_sizes (:495), the log-prob path silently reads wrong positions.
    """

    def maybe_fix_3d_position_ids(data: Any) -> None:
        if "position_ids" not in data.keys():  # noqa: SIM118 (a TensorDict is no mapping)
            return
        nested = data["position_ids"]
        if nested.dim() == 3 and nested.is_nested:
            data["position_ids"] = ragged_in_length(nested)

    module.maybe_fix_3d_position_ids = maybe_fix_3d_position_ids  # type: ignore[attr-defined]


def ragged_in_length(nested: Any) -> Any:
    """The same nested position ids (batch, 4, length*) with the length as ragged dimension.

    Args:
        nested: A jagged tensor whose values are (4, Σ length), whatever dimension it declares ragged,
            or (4·batch, length) if all lengths are equal.
    """
    import torch

    values, offsets = nested.values(), nested.offsets()
    rows, total = values.shape[0], int(offsets[-1])
    if rows == 4 and total == values.shape[1]:
        nested._ragged_idx = 2
        return nested
    batch, length = len(offsets) - 1, values.shape[1]
    if rows != total or rows != 4 * batch:
        raise ValueError(f"position_ids: values of shape {tuple(values.shape)} fit no batch of {batch} M-RoPE rows")
    values = values.view(batch, 4, length).transpose(0, 1).reshape(4, batch * length)
    fixed = torch.nested.nested_tensor_from_jagged(
        values.contiguous(), torch.arange(batch + 1, device=values.device) * length
    )
    # As verl's nested_tensor_from_tensor_list does: the constructor cannot say it for these values.
    fixed._ragged_idx = 2
    return fixed


def _text_only_micro_batch(module: ModuleType) -> None:
    """verl/models/transformers/qwen2_vl.py:393.

    For a micro-batch without pictures verl runs the vision tower on zeros, so that its parameters
    take part in the graph on every rank, and calls `.mean()` on what the tower returns: with
    transformers 5 that is a ModelOutput. verl's own padding rows are such a micro-batch.
    """
    original = module._get_input_embeds

    def _get_input_embeds(
        model: Any,
        input_ids: Any,
        attention_mask: Any = None,
        pixel_values: Any = None,
        pixel_values_videos: Any = None,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
    ) -> tuple[Any, Any]:
        if pixel_values is not None or pixel_values_videos is not None:
            return original(  # type: ignore[no-any-return]
                model, input_ids, attention_mask, pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw
            )
        import torch

        embeds = model.get_input_embeddings()(input_ids)
        vision = model.config.vision_config
        # One picture of 4 x 4 patches, the least that every merge size of the family divides.
        patches = embeds.new_zeros((16, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2))
        grid = torch.tensor([[1, 4, 4]], dtype=torch.long, device=embeds.device)
        image_embeds, _ = module.unpack_visual_output(model.visual(patches, grid_thw=grid))
        embeds = embeds + 0.0 * image_embeds.mean()
        return embeds, None if attention_mask is None else attention_mask.to(embeds.device)

    module._get_input_embeds = _get_input_embeds  # type: ignore[attr-defined]


def _duplicate_cpu_backend(module: ModuleType) -> None:
    """verl/utils/distributed.py:62 and :88.

    Both functions build `cpu:gloo,DEVICE:BACKEND`; where the device is the CPU, torch refuses the
    string "cpu:gloo,cpu:gloo". Only the backend differs here from verl's own code.
    """
    original_ray = module.initialize_global_process_group_ray

    def initialize_global_process_group_ray(timeout_second: float | None = None, backend: str | None = None) -> None:
        original_ray(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    def initialize_global_process_group(timeout_second: float = 36000) -> tuple[int, int, int]:
        import torch.distributed

        torch.distributed.init_process_group(
            backend="cpu:gloo",
            timeout=timedelta(seconds=timeout_second),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )
        return int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    module.initialize_global_process_group_ray = initialize_global_process_group_ray  # type: ignore[attr-defined]
    module.initialize_global_process_group = initialize_global_process_group  # type: ignore[attr-defined]
