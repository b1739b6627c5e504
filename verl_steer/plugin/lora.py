"""Where a LoRA adapter would be trained and never sampled from.

vLLM 0.28 wraps the language model's layers only, unless `enable_tower_connector_lora` is set
(vllm/lora/model_manager.py:209, :424), which verl does not do by itself (vllm_async_server.py:427); adapter weights
of other layers are dropped without an error (model_manager.py:339). And under FSDP2 verl merges, before it sends
merged weights, only adapters inside a wrapped layer (verl/utils/fsdp_utils.py:929): the projector lies in none.
docs/upstream/lora_vllm.md has the figures.

Two more ways lose all of it. Under FSDP1 verl collects the adapter by peft's names, which FSDP1's own wrappers have changed: it
finds nothing, and vLLM takes nothing without an error (verl/utils/fsdp_utils.py:692; tests/plugin/test_lora_sync.py). And a trainer
that sends its weights to machines of their own sends the base alone (verl/workers/engine_workers.py:764).
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin.checks import Problem
from verl_steer.plugin.geometry import Geometry, measure


def adapter_reaches_rollout(config: DictConfig, student: Any) -> str:
    """Every layer that gets an adapter is one to which the rollout applies it.

    Args:
        config: Of the run.
        student: The student's Hugging Face configuration.

    Raises:
        Problem: Part of the adapter would be trained and never sampled from.
    """
    model = config.actor_rollout_ref.model
    rank = int(model.lora_rank or 0)
    merged = bool(OmegaConf.select(config, "actor_rollout_ref.model.lora.merge", default=False))
    if rank == 0:
        return "no LoRA"
    if not merged:
        _travels(config)
    # verl hands `engine_kwargs.vllm` to vLLM's command line.
    tower = OmegaConf.select(
        config, "actor_rollout_ref.rollout.engine_kwargs.vllm.enable_tower_connector_lora", default=False
    )
    on_vllm = str(config.actor_rollout_ref.rollout.name) == "vllm" and not tower
    if not hasattr(student, "vision_config") or not (merged or on_vllm):
        return f"LoRA of rank {rank}"
    lost = vision_layers(measure(student), model.target_modules, model.exclude_modules)
    if merged:
        lost = [name for name in lost if "blocks" not in name.split(".")]
        if lost and str(config.actor_rollout_ref.actor.strategy) == "fsdp2":
            raise Problem(
                f"actor_rollout_ref.model.lora.merge=true under fsdp2 would leave out the adapters of {len(lost)} layers of the "
                f"projector (the first: {lost[0]}): verl merges what lies in a wrapped layer only, and replies would be "
                "sampled from another model than the one that is trained. Set actor_rollout_ref.model.exclude_modules='.*visual.*'"
            )
        return f"LoRA of rank {rank}, merged for the rollout"
    if lost:
        raise Problem(
            f"actor_rollout_ref.model.lora_rank={rank} puts adapters into {len(lost)} layers of the vision tower (the first: "
            f"{lost[0]}), which vLLM does not apply: replies would be sampled from another model than the one that is trained. "
            "Set actor_rollout_ref.model.exclude_modules=.*visual.* (as steer_grpo_7b_lora does), "
            "actor_rollout_ref.model.lora.merge=true under FSDP1, or, experimental in vLLM, "
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.enable_tower_connector_lora=true"
        )
    return f"LoRA of rank {rank}, in the language model only"


def _travels(config: DictConfig) -> None:
    """An adapter that is sent as one arrives."""
    strategy = str(config.actor_rollout_ref.actor.strategy)
    if strategy == "fsdp":
        raise Problem(
            "actor_rollout_ref.actor.strategy=fsdp: verl finds no adapter to send under FSDP1, so replies would be sampled from the "
            "student without it, for the whole run and without an error. Set fsdp2 in actor_rollout_ref.actor.strategy and "
            "actor_rollout_ref.actor.fsdp_config.strategy (as steer_grpo_7b_lora does)"
        )
    if str(OmegaConf.select(config, "trainer.v1.trainer_mode")) == "separate_async":
        raise Problem(
            "trainer.v1.trainer_mode=separate_async: verl sends the base's weights to the rollout's machines and not the adapter. Set "
            "actor_rollout_ref.model.lora.merge=true, or train on the rollout's own machines (trainer.v1.trainer_mode=sync)"
        )


def vision_layers(student: Geometry, target: Any, exclude: Any) -> list[str]:
    """Names of the adapted layers outside the language model."""
    chosen = student.adapted(_plain(target), _plain(exclude))
    return [layer.name for layer in chosen if "language_model" not in layer.name.split(".")]


def _plain(value: Any) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else [str(item) for item in value]
