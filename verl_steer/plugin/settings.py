"""What an agent-loop worker needs once, not once a rollout: parsed configuration, the tutor, the fence key.

verl builds an agent loop object for every rollout; a tutor client (with its connection pool) must
be shared by all rollouts of a process, so it lives here, keyed by the identity of the trainer's
config, which is one object per worker.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.chat.limits import share_of
from verl_steer.config import ConfigError, SteerConfig
from verl_steer.plugin.estimators import REMAX
from verl_steer.roles.build import build_tutor
from verl_steer.roles.frozen import FrozenStudent, build_frozen_student
from verl_steer.roles.tutor import Tutor
from verl_steer.yoke import Yoke


@dataclass(frozen=True)
class Settings:
    """Shared by all rollouts of one process."""

    config: SteerConfig
    tutor: Tutor
    fence_key: bytes
    frozen: FrozenStudent | None = None
    yoke: Yoke | None = None
    greedy_twin: bool = False  # play every row once more, greedily


def run_key(env_name: str | None, seed: int) -> bytes:
    """The secret behind the fences' tags.

    Args:
        env_name: Name of the environment variable that holds it, or None: then it is derived from the
            run's seed, which is reproducible and still unknown to the student.
        seed: `steer.seed`.

    Raises:
        KeyError: The named variable is not set (`check_secrets` has said so before).
    """
    if env_name is None:
        return hashlib.sha256(f"verl_steer fence {seed}".encode()).digest()
    return os.environ[env_name].encode()


def check_secrets(config: SteerConfig) -> None:
    """Every environment variable that the configuration names is set in this process.

    Raises:
        ConfigError: One is not; names the key.
    """
    for key, name in (
        ("steer.tutor.api_key_env", config.tutor.api_key_env),
        ("steer.tutor.fallback.api_key_env", config.tutor.fallback.api_key_env),
        ("steer.difficulty.api_key_env", config.difficulty.api_key_env),
        ("steer.fence_key_env", config.fence_key_env),
    ):
        if name and not os.environ.get(name):
            raise ConfigError(
                f"{key}={name}: that environment variable is not set on {platform.node()}; export it there, and on "
                "every node before `ray start`: a worker has the environment of its node's Ray"
            )


_worker: tuple[int, int] | None = None


def number_worker(index: int, count: int) -> None:
    """Tells this process which of the job's agent-loop workers it is, before its first rollout.

    Args:
        index: From 0.
        count: Number of workers.
    """
    global _worker
    _worker = (index, count)


_by_config: dict[int, tuple[DictConfig, Settings]] = {}


def steer_config(trainer_config: DictConfig) -> SteerConfig:
    """The validated `steer:` node of a trainer's configuration."""
    node: Any = OmegaConf.to_container(
        OmegaConf.select(trainer_config, "steer", default=OmegaConf.create({})), resolve=True
    )
    return SteerConfig.from_mapping(node)


def settings_for(trainer_config: DictConfig) -> Settings:
    """The process's settings for this configuration, made at first use.

    Raises:
        ConfigError: The configuration cannot work here, or names a secret that this process lacks.
    """
    known = _by_config.get(id(trainer_config))
    if known is None:
        config = steer_config(trainer_config)
        check_secrets(config)
        # max_concurrency is a promise about the whole job; each worker keeps its share of it, for training and
        # validation alike. Under a manager that numbers no workers, nobody gets the remainder.
        index, workers = _worker or (None, int(trainer_config.actor_rollout_ref.rollout.agent.num_workers))
        share = share_of(config.tutor.max_concurrency, workers, index)
        frozen_share = share_of(config.difficulty.max_concurrency, workers, index)
        settings = Settings(
            config,
            build_tutor(config.tutor, share),
            run_key(config.fence_key_env, config.seed),
            build_frozen_student(config.difficulty, config.world, frozen_share),
            Yoke.read(config.dialogue.yoked_to) if config.dialogue.yoked_to else None,
            greedy_twin=OmegaConf.select(trainer_config, "algorithm.adv_estimator") == REMAX,
        )
        # The config object is kept alive beside its id, so that the id cannot be reused.
        known = _by_config[id(trainer_config)] = (trainer_config, settings)
    return known[1]
