"""Names of verl's estimators that we wrap, and of those that cannot work; imports nothing, so that checks may read them."""

#: Ours; with it, the agent loop plays a greedy twin of every row.
REMAX = "steer_remax"
#: verl's estimators that fail on its V1 trainer, which we cannot mend from a plugin: what to do instead.
UNUSABLE = {
    "remax": (
        "verl's V1 trainer computes no greedy baseline (verl/trainer/ppo/v1/trainer_base.py:1745); "
        f"use {REMAX}, which plays one"
    ),
    "optimal_token_baseline": (
        "verl's V1 trainer never stores sum_pi_squared (verl/trainer/ppo/v1/trainer_base.py:1653); "
        "steer_turn has a baseline for every turn"
    ),
    "tir_optimal_token_baseline": (
        "verl's V1 trainer never stores sum_pi_squared (verl/trainer/ppo/v1/trainer_base.py:1653); "
        "steer_turn has a baseline for every turn"
    ),
    "gdpo": (
        "verl's V1 trainer hands it neither prompts nor reward components (verl/trainer/ppo/v1/trainer_base.py:1745); "
        "weigh the three scores in steer.reward.weights and use masked_grpo"
    ),
}

#: verl's estimators that work from group returns; gae and remax need more than a rollout can give.
MASKABLE = (
    "grpo",
    "grpo_vectorized",
    "grpo_passk",
    "rloo",
    "rloo_vectorized",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "opo",
    "gpg",
)
#: Those that, left with one row of a group, return the raw score: there is nothing to compare it with, so 0.
GROUP_RELATIVE = (
    "grpo",
    "grpo_vectorized",
    "grpo_passk",
    "rloo",
    "rloo_vectorized",
    "opo",
    "gpg",
    "reinforce_plus_plus_baseline",
)
