"""Which tutor does a configuration name?"""

from __future__ import annotations

import importlib

from verl_steer.config import TutorConfig
from verl_steer.roles.tutor import Tutor


def build_tutor(config: TutorConfig, max_concurrency: int) -> Tutor:
    """The tutor named by `steer.tutor.kind`.

    Args:
        config: The validated `steer.tutor` node.
        max_concurrency: This process's share of the job's limit.
    """
    if config.kind == "microworld":
        # By name only: the core does not depend on the embedded default.
        tutor: Tutor = importlib.import_module("verl_steer.microworld.tutor").MicroworldTutor()
        return tutor
    from verl_steer.roles.endpoint_tutor import EndpointTutor  # httpx costs 0.1 s that rules do not need

    return EndpointTutor(config, max_concurrency=max_concurrency)
