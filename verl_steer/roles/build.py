"""Which tutor does a configuration name?"""

from __future__ import annotations

import dataclasses
import importlib

from verl_steer.config import ConfigError, FallbackConfig, TutorConfig
from verl_steer.roles.custom import build_custom
from verl_steer.roles.tutor import Tutor


def build_tutor(config: TutorConfig, max_concurrency: int) -> Tutor:
    """The tutor named by `steer.tutor.kind`.

    Args:
        config: The validated `steer.tutor` node.
        max_concurrency: This process's share of the job's limit.

    Raises:
        ConfigError: A custom tutor cannot be built, or a managed one has no servers.
    """
    if config.kind == "microworld":
        # By name only: the core does not depend on the embedded default.
        tutor: Tutor = importlib.import_module("verl_steer.microworld.tutor").MicroworldTutor()
        return tutor
    if config.kind == "custom":
        return build_custom(config.custom, max_concurrency)
    if config.kind == "managed":
        raise ConfigError(
            "steer.tutor.kind=managed: nobody has started its servers; that is the work of actor_rollout_ref.rollout.agent."
            "agent_loop_manager_class=verl_steer.plugin.worker.SteerAgentLoopManager (recipe steer_base sets it)"
        )
    from verl_steer.roles.endpoint_tutor import EndpointTutor  # httpx costs 0.1 s that rules do not need
    from verl_steer.roles.fallback import FallbackTutor

    endpoint = EndpointTutor(config, max_concurrency, outage_s=config.outage_s)
    if not config.fallback:
        return endpoint
    # It waits for no outage of its own: a verdict without it is missing, as it would be if none were configured.
    return FallbackTutor(endpoint, EndpointTutor(fallback_of(config), max_concurrency))


def fallback_of(config: TutorConfig) -> TutorConfig:
    """The fallback judge as a tutor's configuration: the tutor's own settings at other servers.

    It is an endpoint whatever the tutor is: the servers that a run starts for a managed tutor are the tutor's alone.
    """
    judge = config.fallback
    return dataclasses.replace(
        config,
        kind="endpoint",
        model=judge.model,
        base_urls=judge.base_urls,
        api_key_env=judge.api_key_env,
        fallback=FallbackConfig(),
    )
