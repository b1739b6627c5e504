"""verl's agent-loop manager and worker, with what a plugin cannot reach from inside a loop.

The loop is told whether a row is a validation row (verl removes that flag before calling it); the rollouts
of a row share what is the same for all of them; a finished rollout's tensors are made in a thread, once,
and not twice on the event loop that all dialogues live on; and the data-set columns that only the loop
needs (script, picture bytes) stop travelling with every finished rollout. Each worker knows its share of the
job's limits, and a tutor that is gone for good ends the run.
"""

from __future__ import annotations

import asyncio
import gc
import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import ray
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.chat.outage import ModelOutage
from verl_steer.config import ConfigError
from verl_steer.plugin import managed, outage
from verl_steer.plugin.opening import Once
from verl_steer.plugin.settings import number_worker, settings_for, steer_config
from verl_steer.threads import in_thread

LOOP_ONLY = (
    "steer",
    "prompt",
    "raw_prompt",
    "images",
    "later_images",
    "tools_kwargs",
    "interaction_kwargs",
    "steer_validate",
    "steer_once",
)
# Collections of the middle generation before a full one while dialogues run; Python's own figure is 10.
FULL_COLLECTION_AFTER = 1000
# What a processor makes of pictures alone. Siblings that were shown the same pictures share it.
_OF_PICTURES = {"pixel_values", "image_grid_thw", "images_seqlens"}

# AgentLoopWorkerTQ is already a Ray actor class; the plain class underneath is what can be subclassed.
_PlainWorker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class


@dataclass(frozen=True)
class Tensors:
    """What verl computes of a finished rollout, for its reward worker and for the trainer.

    Attributes:
        inputs: The processor's tensors, without `mm_token_type_ids`.
        position_ids: As `_compute_position_ids` gives them.
    """

    inputs: dict[str, Any]
    position_ids: torch.Tensor


# Every rollout is a task of its own, so this is the rollout's own.
_tensors: ContextVar[Tensors | None] = ContextVar("steer_tensors", default=None)


class SteerAgentLoopWorker(_PlainWorker):
    """An agent-loop worker that knows validation rows, shares a row's work and trims what it sends on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # More threads would only take the interpreter's lock from each other, and from the event loop.
        self._heavy = asyncio.Semaphore(2)
        # verl builds a loop for every rollout, some milliseconds each without giving way: a step's hundreds at
        # once would hold the first dialogue back until the last is built. So one a turn of the event loop.
        self._start = asyncio.Lock()
        self._running = 0
        self._warm = False
        # A full collection walks half a million objects of torch and transformers that live as long as this
        # process: a quarter of a second in which no dialogue moves. Frozen, they are not looked at again. It
        # also walks every token of every dialogue, so it waits until none runs, or for very long.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION_AFTER)

    async def _run_prompt(self, prompt: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self._running += 1
        try:
            await super()._run_prompt({**prompt, "steer_once": Once(self._heavy)}, *args, **kwargs)
        finally:
            self._running -= 1
            if not self._running:
                gc.collect()
                if not self._warm:  # what the first dialogues have imported stays, too
                    self._warm = True
                    gc.freeze()

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        async with self._start:
            await asyncio.sleep(0)
        try:
            return await super()._run_agent_loop(
                sampling_params, trajectory, steer_validate=bool(trajectory["validate"]), **kwargs
            )
        except (ModelOutage, ChatConfigError, ConfigError) as error:
            # verl would go on with the rollouts of the other workers, step after step.
            await outage.report(f"worker-{os.getpid()}", error)
            raise

    async def take_number(self, index: int, count: int) -> None:
        """Which of the job's workers this is; see `settings.number_worker`.

        What a worker needs is made here, before the first rollout: an exception of the manager's call ends the run,
        whereas one in a rollout would cost this worker's share of every step, and verl would only log it.

        Raises:
            ConfigError: This worker's node lacks a secret, or the configuration cannot work.
        """
        number_worker(index, count)
        if OmegaConf.select(self.config, "actor_rollout_ref.rollout.agent.default_agent_loop") == "steer":
            settings_for(self.config)

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        kept = {key: value for key, value in kwargs.items() if key not in LOOP_ONLY}
        prepared = None if isinstance(output, list) else await self._prepare(output, kwargs.get("steer_once") or Once())
        token = _tensors.set(prepared)
        try:
            await super()._agent_loop_postprocess(output, validate, **kept)
        finally:
            _tensors.reset(token)

    async def _prepare(self, output: Any, once: Once) -> Tensors:
        """Computes a rollout's tensors with verl's own two methods, in a thread."""
        input_ids = torch.tensor([*output.prompt_ids, *output.response_ids], dtype=torch.int64)
        plain = super()

        async def pictures() -> dict[str, Any]:
            # Without the replies: a placeholder that this student spelled out would be read for all siblings.
            given = (token for token, said in zip(output.response_ids, output.response_mask, strict=True) if not said)
            asked = torch.tensor([*output.prompt_ids, *given], dtype=torch.int64)
            return await in_thread(lambda: plain._compute_multi_modal_inputs(output, asked))

        shown = len((output.multi_modal_data or {}).get("images") or ())
        inputs = await once.get(f"pictures {shown}", pictures)
        async with self._heavy:
            if not self._shareable(inputs):
                inputs = await in_thread(lambda: plain._compute_multi_modal_inputs(output, input_ids))
            own = dict(inputs)  # verl's method takes `mm_token_type_ids` out
            rows = input_ids.unsqueeze(0)
            positions = await in_thread(lambda: plain._compute_position_ids(rows, torch.ones_like(rows), own))
        return Tensors(own, positions)

    def _shareable(self, inputs: dict[str, Any]) -> bool:
        """Whether a processor's tensors say nothing of the text. verl itself makes `mm_token_type_ids` anew
        from the tokens, but only for a processor with `get_rope_index`."""
        allowed = _OF_PICTURES | ({"mm_token_type_ids"} if hasattr(self.processor, "get_rope_index") else set())
        return set(inputs) <= allowed

    def _compute_multi_modal_inputs(self, output: Any, input_ids: Any) -> dict[str, Any]:
        prepared = _tensors.get()
        if prepared is None:
            return super()._compute_multi_modal_inputs(output, input_ids)
        return dict(prepared.inputs)

    def _compute_position_ids(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        prepared = _tensors.get()
        return super()._compute_position_ids(*args, **kwargs) if prepared is None else prepared.position_ids


class SteerAgentLoopManager(AgentLoopManagerTQ):
    """Set as `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(SteerAgentLoopWorker)

    async def _init_agent_loop_workers(self) -> None:
        tutor = steer_config(self.config).tutor
        if tutor.kind == "managed":
            # Held here: the servers live as long as somebody holds them.
            self.tutor_replicas = await managed.start(tutor)
            self.config = await managed.hand_over(self.config, tutor, self.tutor_replicas)
        await super()._init_agent_loop_workers()
        workers = self.agent_loop_workers
        await asyncio.gather(*(w.take_number.remote(i, len(workers)) for i, w in enumerate(workers)))
