"""The doctor's checks for stage II: `sft_preflight`'s, all of them but for the folder's earlier checkpoints, and the device."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from verl_steer.plugin import checks, paths, requirements, sft_preflight
from verl_steer.plugin.findings import Finding, gpus_seen, run, student


def stage_two(config: DictConfig, findings: list[Finding]) -> None:
    """What verl's SFT trainer needs; there is no rollout, no tutor and no Ray."""
    run(findings, "plugin in this process", lambda: (sft_preflight.plugin_loaded(), {}))
    run(findings, "device", lambda: _device(config))
    run(findings, "attention", lambda: (requirements.attention(config, "model", "engine"), {}))
    run(findings, "paths", lambda: (paths.mean_the_same_under_torchrun(config), {}))
    run(findings, "output folders", lambda: (checks.output_writable(config), {}))
    run(findings, "steer node", lambda: (sft_preflight.switch_reaches(config), {}))
    model = run(findings, "student", lambda: student(config, "model"))
    if model:
        run(findings, "data", lambda: _data(config, model))


def _device(config: DictConfig) -> tuple[str, dict[str, Any]]:
    device = str(config.trainer.device)
    count = gpus_seen(device)
    # How many take part is torchrun's --nproc-per-node, not the recipe's.
    return f"{device} ({count} GPUs seen), engine {config.engine.strategy}", {"device": device, "gpus": count}


def _data(config: DictConfig, model: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    counts = sft_preflight.data_usable(config, model["tokenizer"], model["processor"])
    return f"{counts['rows']} rows, {counts['rejected']} rejected", dict(counts)
