"""Names of verl's estimators that we wrap; imports nothing, so that checks may read them."""

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
