"""What a doctor says: findings, the recipe it composes to look at, and checks that become findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.extras import install_command
from verl_steer.plugin import checks
from verl_steer.plugin.version import UnsupportedVersionError

#: verl's configurations, of its SFT trainer and of main_ppo.
_SFT, _PPO = _TRAINERS = ("sft_trainer_engine", "ppo_trainer")


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        status: "ok", "fail" or "note" (a note never blocks).
        detail: What was found; for a failure what is wrong and what to do.
        facts: The same for machines.
    """

    name: str
    status: str
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


def run(findings: list[Finding], name: str, check: Callable[[], tuple[str, dict[str, Any]]]) -> dict[str, Any] | None:
    """Makes a finding of what `check` says, or of the `Problem` it raises; its facts, or None after a problem."""
    try:
        detail, facts = check()
    except (checks.Problem, UnsupportedVersionError) as problem:
        findings.append(Finding(name, "fail", str(problem)))
        return None
    findings.append(Finding(name, "ok", detail, facts))
    return facts


def compose_recipe(overrides: list[str], config_dir: Path | None, findings: list[Finding]) -> DictConfig | None:
    """The configuration that a trainer would see, or None; either is a finding.

    Args:
        overrides: Hydra overrides as given to the trainer, e.g. `+recipe=steer_grpo`.
        config_dir: A folder of the user's own configuration, as `main_ppo --config-dir`.
        findings: Where it is noted.
    """
    import verl  # noqa: F401  (loads the plugin, which registers the recipes' resolvers)
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    errors: dict[str, Exception] = {}
    path = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.absolute()}]"]
    for trainer in _TRAINERS:
        try:
            with initialize_config_module("verl.trainer.config", version_base=None):
                config = compose(trainer, overrides=[*path, *overrides])
            OmegaConf.to_container(config, resolve=True)
        except (HydraException, ValueError) as error:
            errors[trainer] = error
            continue
        if is_sft(config) == (trainer == _SFT):
            findings.append(Finding("recipe", "ok", " ".join(overrides)))
            return config
    # A recipe of one trainer hardly composes for the other: the error that helps is the one of the trainer it is for.
    meant = _SFT if any("recipe=" in o and "sft" in o for o in overrides) and _SFT in errors else _PPO
    why = errors.get(meant, "it sets a node `steer.sft`, which is the SFT trainer's")
    findings.append(Finding("recipe", "fail", f"{' '.join(overrides)} does not compose: {why}"))
    return None


def is_sft(config: DictConfig) -> bool:
    """Whether a configuration is one of stage II."""
    return OmegaConf.select(config, "steer.sft") is not None


def gpus_seen(device: str) -> int:
    """How many GPUs torch sees.

    Raises:
        Problem: None, and `device` is "cuda".
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and count == 0:
        raise checks.Problem(
            "trainer.device=cuda, but torch sees no GPU here; on a machine without one set VERL_STEER_DEVICE=cpu, or install a CPU "
            f"build of torch, then {install_command('cpu')}"
        )
    return count


def student(config: DictConfig, node: str = "actor_rollout_ref.model") -> tuple[str, dict[str, Any]]:
    """What the model at `node` is; facts: its tokenizer and its processor."""
    tokenizer, processor = checks.model_readable(config, node)
    sees = "sees pictures" if processor is not None else "text only"
    return f"{OmegaConf.select(config, node).path} ({sees})", {"tokenizer": tokenizer, "processor": processor}


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """{"ok": no known blocker, "findings": [...]}."""
    return {"ok": all(f.status != "fail" for f in findings), "findings": [asdict(f) for f in findings]}
