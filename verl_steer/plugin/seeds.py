"""A seed for every request to the rollout server: with one seed a replica all siblings would say the same."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_steer.chat import client


def seed_name(config: DictConfig) -> str | None:
    """What the rollout server calls a request's seed; None where a request must have none.

    The asynchronous modes abort requests, and send prompt and partial reply again: a server that keeps a stream of random
    numbers a request would draw the rest of a reply with the numbers that its beginning was drawn with, and so not from
    the student's distribution.

    Args:
        config: The trainer's.
    """
    if OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync") != "sync":
        return None
    # SGLang's SamplingParams refuses a `seed`.
    return "sampling_seed" if OmegaConf.select(config, "actor_rollout_ref.rollout.name") == "sglang" else "seed"


def seed_of(name: str | None, key: str) -> dict[str, int]:
    """The sampling parameter of a request.

    Args:
        name: From `seed_name`.
        key: What makes the request the one it is.

    Returns:
        Name and value; empty without a name.
    """
    if name is None:
        return {}
    return {name: client.seed_of(key)}
