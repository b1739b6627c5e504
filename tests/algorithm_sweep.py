"""A run of main_ppo that changes its advantage estimator and its loss every two steps.

Starting Ray and loading torch in every process is nearly all that a run of two steps costs, and an estimator and a
loss are functions that verl looks up by name. So one run shows them all: it names the estimator and the loss below,
which hand over to those of the stage at hand, each with the configuration that its row composes to. verl loads this
module where it is needed, in the trainer and in its workers, through `actor_rollout_ref.model.external_lib`.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos

from verl_steer.plugin.preflight import Preflight

NAME = "algorithm_sweep"
PLAN = "VERL_STEER_SWEEP"
STEPS_EACH = 2
# Two mini-batches, each met twice, each in one micro-batch: what the sweep's own overrides make of a step.
LOSSES_A_STEP = 4
# Fields of the actor's configuration that a row may set and a loss reads.
ACTOR_FIELDS = ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "tau_pos", "tau_neg")
OVERRIDES = (
    f"algorithm.adv_estimator={NAME}",
    f"actor_rollout_ref.actor.policy_loss.loss_mode={NAME}",
    f"actor_rollout_ref.model.external_lib={NAME}",
    # The driver, too, must know the names: its preflight looks them up.
    f"hydra.callbacks.steer_preflight._target_={NAME}.SweepPreflight",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.ppo_epochs=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=6",
    "actor_rollout_ref.actor.optim.lr=5e-3",
)


def stage_of(config: Any) -> dict[str, Any]:
    """What a stage takes from its row's composed configuration."""
    actor = OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True)
    return {
        "algorithm": OmegaConf.to_container(config.algorithm, resolve=True),
        "actor": {name: actor[name] for name in ACTOR_FIELDS},
        "policy_loss": {k: v for k, v in actor["policy_loss"].items() if k != "_target_"},
        "loss_agg_mode": actor["loss_agg_mode"],
        "loss_scale_factor": actor["loss_scale_factor"],
    }


class SweepPreflight(Preflight):
    """The recipe's own preflight, in a process that has loaded this module."""


class Sweep:
    """Where this process is in the plan.

    Args:
        stages: From `stage_of`, in order.
        journal: A line of it tells the stage of each loss.
    """

    def __init__(self, stages: list[dict[str, Any]], journal: Path) -> None:
        self.stages, self.journal = stages, journal
        self.estimated = self.lost = 0

    def estimator(self, config: Any = None, **given: Any) -> Any:
        """The stage's advantage estimator; verl calls it once a step."""
        stage = self.stages[self.estimated // STEPS_EACH]
        self.estimated += 1
        own = core_algos.get_adv_estimator_fn(stage["algorithm"]["adv_estimator"])
        return own(config=OmegaConf.create(stage["algorithm"]), **given)

    def loss(self, *, loss_agg_mode: str, config: Any, **given: Any) -> Any:
        """The stage's policy loss."""
        number = self.lost // (LOSSES_A_STEP * STEPS_EACH)
        stage, mode = self.stages[number], self.stages[number]["policy_loss"]["loss_mode"]
        self.lost += 1
        own = copy.copy(config)
        changed = {
            **stage["actor"],
            "policy_loss": OmegaConf.create(stage["policy_loss"]),
            "global_batch_info": {**config.global_batch_info, "loss_scale_factor": stage["loss_scale_factor"]},
        }
        for name, value in changed.items():
            object.__setattr__(own, name, value)  # verl's configurations are frozen
        with self.journal.open("a") as lines:
            lines.write(f"{number} {mode}\n")
        return core_algos.get_policy_loss_fn(mode)(loss_agg_mode=stage["loss_agg_mode"], config=own, **given)


if os.environ.get(PLAN) and NAME not in core_algos.ADV_ESTIMATOR_REGISTRY:
    _plan = Path(os.environ[PLAN])
    _sweep = Sweep(json.loads(_plan.read_text(encoding="utf-8")), _plan.with_suffix(".losses"))
    core_algos.register_adv_est(NAME)(_sweep.estimator)
    core_algos.register_policy_loss(NAME)(_sweep.loss)
