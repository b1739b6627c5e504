"""Is the algorithm that a configuration asks for one that runs on our rollouts, and does it do what it says?"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin.checks import Problem
from verl_steer.plugin.estimators import MASKABLE, UNUSABLE


def usable(config: DictConfig) -> str:
    """Trainer, estimator and group filter fit multi-turn rollouts with missing verdicts.

    Raises:
        Problem: One does not; says what to use.
    """
    estimator = str(OmegaConf.select(config, "algorithm.adv_estimator"))
    if estimator in UNUSABLE:
        raise Problem(f"algorithm.adv_estimator={estimator}: {UNUSABLE[estimator]}")
    # Only our reward manager masks rollouts; beside another one verl's own estimators see what they expect.
    ours = str(OmegaConf.select(config, "reward.reward_manager.name")) == "steer"
    if ours and estimator in MASKABLE:
        raise Problem(
            f"algorithm.adv_estimator={estimator} lets rollouts without verdicts vote in the baseline; "
            f"use masked_{estimator}, the same estimator without them"
        )
    if not OmegaConf.select(config, "trainer.use_v1", default=True):
        raise Problem("trainer.use_v1=False: verl's V0 trainer ignores turn rewards; leave it true")
    groups = "algorithm.filter_groups"
    # verl refuses it too (trainer_base.py:187), but asks only where it makes one of its built-in samplers.
    if OmegaConf.select(config, f"{groups}.enable", default=False) and not OmegaConf.select(config, f"{groups}.metric"):
        raise Problem(
            f"{groups}.enable=true without {groups}.metric filters nothing; set {groups}.metric=reward, or take "
            "+recipe=[…,with_dapo]"
        )
    return f"{estimator} runs on rollouts with missing verdicts"
