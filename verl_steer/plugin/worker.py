"""verl's agent-loop manager and worker, with what a plugin cannot reach from inside a loop.

Small additions: the loop is told whether a row is a validation row (verl removes that flag before
calling it), the data-set columns that only the loop needs (script, picture bytes) stop travelling with
every finished rollout, each worker knows its share of the job's limits, and a tutor that is gone for good
ends the run.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_steer.chat.outage import ModelOutage
from verl_steer.plugin import outage
from verl_steer.plugin.settings import number_worker

LOOP_ONLY = (
    "steer",
    "prompt",
    "raw_prompt",
    "images",
    "later_images",
    "tools_kwargs",
    "interaction_kwargs",
    "steer_validate",
)

# AgentLoopWorkerTQ is already a Ray actor class; the plain class underneath is what can be subclassed.
_PlainWorker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class


class SteerAgentLoopWorker(_PlainWorker):
    """An agent-loop worker that knows validation rows and trims what it sends on."""

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        try:
            return await super()._run_agent_loop(
                sampling_params, trajectory, steer_validate=bool(trajectory["validate"]), **kwargs
            )
        except ModelOutage as error:
            await outage.report(f"worker-{os.getpid()}", error)
            raise

    async def take_number(self, index: int, count: int) -> None:
        """Which of the job's workers this is; see `settings.number_worker`."""
        number_worker(index, count)

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        kept = {key: value for key, value in kwargs.items() if key not in LOOP_ONLY}
        await super()._agent_loop_postprocess(output, validate, **kept)


class SteerAgentLoopManager(AgentLoopManagerTQ):
    """Set as `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SteerAgentLoopWorker)

    async def _init_agent_loop_workers(self) -> None:
        await super()._init_agent_loop_workers()
        workers = self.agent_loop_workers
        await asyncio.gather(*(w.take_number.remote(i, len(workers)) for i, w in enumerate(workers)))
