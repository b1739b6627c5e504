"""Is the algorithm that a configuration asks for one that runs on our rollouts, and does it do what it says?"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin.checks import Problem
from verl_steer.plugin.estimators import GROUP_RELATIVE, MASKABLE, UNUSABLE


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
    if ours:
        _fits_groups_and_turns(config, estimator)
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


def _fits_groups_and_turns(config: DictConfig, estimator: str) -> None:
    """The estimator finds what it compares: siblings, or whole turns.

    Raises:
        Problem: It would find none, and train on nothing or on pieces, without a word.
    """
    key = "actor_rollout_ref.rollout.n"
    lone = ("steer_grpo", "steer_final", *(f"masked_{name}" for name in GROUP_RELATIVE))
    if estimator in lone and int(OmegaConf.select(config, key, default=1)) < 2:
        raise Problem(
            f"{key}=1 with algorithm.adv_estimator={estimator}: a rollout without siblings has nothing to be compared with and "
            f"teaches nothing; set {key}=5 (the paper's), or take masked_reinforce_plus_plus, steer_remax or gae"
        )
    # verl takes single tokens out of the response mask before it calls the estimator (rollout_corr_helper.py:1060).
    rejection = "algorithm.rollout_correction.rollout_rs"
    if estimator in ("steer_turn", "steer_final") and "token_" in str(OmegaConf.select(config, rejection)):
        raise Problem(
            f"{rejection}={OmegaConf.select(config, rejection)} takes tokens out of turns, and {estimator} would take what is "
            "left of one for several; use a seq_* mode"
        )
