"""The only folder that imports verl. verl itself imports it, through the entry point `verl.plugins`.

That import happens at every `import verl`, in every process of a job, and verl swallows its errors
(verl/__init__.py:74). So this module does next to nothing itself: it asks to be called when the
modules it extends are loaded, and it remembers what went wrong until `preflight.py` can say so.
"""

from __future__ import annotations

import importlib
import sys

from verl_steer.plugin import compat, hooks
from verl_steer.plugin.version import check_versions

AGENT_LOOP = "steer"
REWARD_MANAGER = "steer"


def _register_agent_loop() -> None:
    from verl.experimental.agent_loop import agent_loop

    # By dotted name, as verl's own `register` stores it: our module loads when the first loop is built.
    agent_loop._agent_loop_registry[AGENT_LOOP] = {"_target_": "verl_steer.plugin.agent_loop.SteerAgentLoop"}


def _register_reward_manager() -> None:
    from verl.experimental.reward_loop.reward_manager import register

    from verl_steer.plugin.reward_manager import SteerRewardManager

    register(REWARD_MANAGER)(SteerRewardManager)


def _register_estimators() -> None:
    from verl.trainer.ppo import core_algos

    from verl_steer.plugin.advantage import register_all

    register_all(core_algos.register_adv_est, core_algos.get_adv_estimator_fn)


def _install_value_model() -> None:
    from verl_steer.plugin.value_model import install

    # Its parent package may not know it yet: we are called in the middle of its import.
    install(sys.modules["verl.utils.model"])


def _register_checkpoint_engine() -> None:
    importlib.import_module("verl_steer.plugin.checkpoint_engine")


def _register_freeze() -> None:
    import verl.workers.engine.fsdp.transformer_impl as engines

    from verl_steer.plugin import freeze

    freeze.install(engines)


def _register_resolvers() -> None:
    from verl_steer.plugin.resolvers import register_all

    register_all()


hooks.guard("version gate", check_versions)
hooks.guard("workarounds for verl", lambda: compat.install(cpu=False))
hooks.after_import("omegaconf", _register_resolvers)
hooks.after_import("verl.experimental.agent_loop.agent_loop", _register_agent_loop)
hooks.after_import("verl.experimental.reward_loop.reward_manager", _register_reward_manager)
hooks.after_import("verl.trainer.ppo.core_algos", _register_estimators)
hooks.after_import("verl.utils.model", _install_value_model)
hooks.after_import("verl.checkpoint_engine.base", _register_checkpoint_engine)
hooks.after_import("verl.workers.engine.fsdp.transformer_impl", _register_freeze)
