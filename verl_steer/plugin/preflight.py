"""Everything that can be wrong is said before Ray starts.

A Hydra callback: the recipes set `hydra.callbacks.steer_preflight`, and Hydra calls `on_job_start`
before verl's main. It stops with one clear message instead of a traceback out of the fifth process.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_steer.config import TutorConfig
from verl_steer.plugin import (
    algorithm,
    arithmetic,
    checks,
    fingerprint,
    geometry,
    gpus,
    lora,
    managed,
    paths,
    requirements,
)
from verl_steer.plugin.resolvers import uses_embedded_student, world_place
from verl_steer.plugin.sample import sample_image
from verl_steer.plugin.version import UnsupportedVersionError


class Preflight(Callback):
    """Stops a run that cannot work; builds the embedded world at first use."""

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra with the composed configuration.

        Raises:
            SystemExit: With the message; nothing has been started or overwritten.
        """
        try:
            run_preflight(config)
        except (checks.Problem, UnsupportedVersionError, fingerprint.ForeignCheckpointError) as problem:
            sys.exit(f"\nverl_steer: {problem}\n")


def run_preflight(config: DictConfig) -> None:
    """All checks in the order in which their messages help most; see `checks.py`."""
    checks.plugin_loaded(config)
    algorithm.usable(config)
    requirements.attention(config)
    requirements.rollout_engine("actor_rollout_ref.rollout.name", str(config.actor_rollout_ref.rollout.name))
    steer = checks.steer_node(config)
    paths.mean_the_same(config)
    checks.output_writable(config)
    checks.lengths_agree(config)
    batches = arithmetic.batches_divide(config)
    gpus.find_room(config)
    if uses_embedded_student(config):
        importlib.import_module("verl_steer.microworld.prepare").ensure(*world_place(config))
    tokenizer, processor = checks.model_readable(config)
    student = geometry.hf_config(config)
    arithmetic.heads_divide(config, *geometry.heads(student))
    lora.adapter_reaches_rollout(config, student)
    files = checks.data_files(config)
    counts = checks.rows_usable(config, steer, tokenizer, processor)
    arithmetic.enough_rows(config, counts["train"])
    checks.yoked_records(config, steer)
    if steer.tutor.kind == "managed":
        managed_tutor(config, steer.tutor)
    checks.tutor_answers(steer, sample_image())
    mine = fingerprint.fingerprint(config, [path for key, path in files if key == "data.train_files"])
    start = fingerprint.check_resume(config, mine)
    fingerprint.remember(config, mine)
    print(
        f"verl_steer: preflight passed; {counts['rows']} rows, {counts['turns']} turns, {counts['rejected']} rejected; {start}\n"
        f"verl_steer: {batches}",
        flush=True,
    )


def managed_tutor(config: DictConfig, tutor: TutorConfig) -> str:
    """A tutor that the run is to serve itself can be started: its model and its engine are there, somebody starts it.

    Raises:
        Problem: It cannot.
    """
    checks.readable_model(
        "steer.tutor.managed.path", str(tutor.managed.path or tutor.model), tutor.managed.trust_remote_code
    )
    requirements.rollout_engine("steer.tutor.managed.engine", tutor.managed.engine)
    managed.rollout_config(tutor)
    starter = str(OmegaConf.select(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class"))
    if not starter.startswith("verl_steer."):
        raise checks.Problem(
            f"steer.tutor.kind=managed, but actor_rollout_ref.rollout.agent.agent_loop_manager_class={starter} starts no tutor; "
            "set verl_steer.plugin.worker.SteerAgentLoopManager"
        )
    return gpus.describe(config)
