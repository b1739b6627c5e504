"""The trainer's side of `rollout.name=hf`: sends new weights to the replica's server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.utils import ensure_async_iterator

from verl_steer.plugin.cpu.replica import server_name

Weights = Iterable[tuple[str, torch.Tensor]] | AsyncIterable[tuple[str, torch.Tensor]]


class HfServerAdapter(BaseRollout):
    """Lives in every trainer rank; the first rank of a replica talks to its server.

    Args:
        config: verl's rollout node.
        model_config: verl's model node.
        device_mesh: Of the rollout; not needed here.
        replica_rank: Number of the replica, or -1 to work it out from this process's rank.
    """

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        ranks = (
            self.config.tensor_model_parallel_size
            * self.config.data_parallel_size
            * self.config.pipeline_model_parallel_size
        )
        rank = int(os.environ["RANK"])
        self.replica_rank = rank // ranks if replica_rank == -1 else replica_rank
        self.is_leader_rank = rank % ranks == 0
        self._handle: Any = None

    @property
    def _server(self) -> Any:
        # The server starts after the trainer's workers.
        if self._handle is None:
            self._handle = ray.get_actor(server_name(self.replica_rank))
        return self._handle

    async def resume(self, tags: list[str]) -> None:
        """Weights and cache stay where they are."""

    async def release(self) -> None:
        """Gives the server's cache back."""
        if self.is_leader_rank:
            await self._server.sleep.remote()

    @torch.no_grad()
    async def update_weights(
        self, weights: Weights, global_steps: int | None = None, wire_format: str = "named_tensors", **kwargs: Any
    ) -> None:
        """Sends full tensors, in portions of `checkpoint_engine.update_weights_bucket_megabytes`.

        Every rank walks through `weights`: gathering a sharded tensor takes all of them.

        Raises:
            ValueError: Another wire format, or LoRA weights that are not merged.
        """
        if wire_format != "named_tensors":
            raise ValueError(f"the hf rollout takes wire_format=named_tensors, got {wire_format}")
        if kwargs.get("peft_config") is not None:
            raise ValueError("the hf rollout needs whole weights: set actor_rollout_ref.model.lora.merge=true")
        bucket, size = [], 0
        limit = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        async for name, tensor in ensure_async_iterator(weights):
            if not self.is_leader_rank:
                continue
            if bucket and size + tensor.nbytes > limit:
                await self._server.update_weights.remote(bucket, last=False)
                bucket, size = [], 0
            bucket.append((name, tensor.detach().cpu()))
            size += tensor.nbytes
        if self.is_leader_rank:
            await self._server.update_weights.remote(bucket, last=True)
            if global_steps is not None:
                await self._server.set_global_steps.remote(global_steps)
