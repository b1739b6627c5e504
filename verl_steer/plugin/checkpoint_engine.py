"""The checkpoint engine `steer_ray`: weights from trainer to separate rollout servers through Ray's object store.

`trainer.v1.trainer_mode=separate_async` refuses verl's `naive` engine, and every other one that verl brings moves
device memory (NCCL, HCCL, NIXL, Mooncake: verl/checkpoint_engine/). This one needs nothing but Ray, so it serves
machines without such a transport. Where there is one, use it: a copy through host memory is slower.

The first trainer rank cuts the weights into portions of `update_weights_bucket_megabytes`, puts each into the object
store and its reference into a mailbox; every rollout worker takes the portions in order. The mailbox holds `WINDOW`
portions, so memory stays at so many whatever the size of the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ray
import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

NAME = "steer_ray"
WINDOW = 2
Portion = list[tuple[str, torch.Tensor]]


class Mailbox:
    """Portions on their way, in order; a Ray actor of one transfer.

    Args:
        readers: How many take every portion.
    """

    def __init__(self, readers: int) -> None:
        self._readers = readers
        self._portions: dict[int, list[ray.ObjectRef] | None] = {}
        self._taken: dict[int, int] = {}
        self._written = 0
        self._changed = asyncio.Condition()

    async def put(self, portion: list[ray.ObjectRef] | None) -> None:
        """Adds a portion (a list of one reference, which Ray then does not fetch), or None: the end. Waits for room."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._portions) < WINDOW)
            self._portions[self._written], self._taken[self._written] = portion, 0
            self._written += 1
            self._changed.notify_all()

    async def get(self, number: int) -> list[ray.ObjectRef] | None:
        """Portion `number`, from 0; forgotten once every reader has it."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._portions)
            portion = self._portions[number]
            self._taken[number] += 1
            if self._taken[number] == self._readers:
                del self._portions[number], self._taken[number]
                self._changed.notify_all()
            return portion


@CheckpointEngineRegistry.register(NAME)
class RayCheckpointEngine(CheckpointEngine):
    """See the module.

    Args:
        bucket_size: Bytes of a portion; a larger tensor is a portion by itself.
        is_master: verl's word for the first trainer rank; the topology says it again.
        timeout_s: Seconds to wait for the other side of one portion, from `engine_kwargs.steer_ray.timeout_s`.
    """

    def __init__(self, bucket_size: int, is_master: bool = False, timeout_s: float = 600.0) -> None:
        self.bucket_size = bucket_size
        self.timeout_s = timeout_s
        self._mailbox: Any = None
        self._sends = False

    def prepare(self) -> None:
        """Nothing to allocate."""

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """A fresh mailbox for everybody; the first trainer rank sends."""
        mailbox = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=1000).remote(rollout_world_size)
        senders = {"mailbox": [mailbox] * actor_wg_world_size, "sends": [r == 0 for r in range(actor_wg_world_size)]}
        readers = {"mailbox": [mailbox] * rollout_world_size, "sends": [False] * rollout_world_size}
        return senders, readers

    def init_process_group(self, mailbox: Any, sends: bool) -> None:
        """Takes this transfer's mailbox."""
        self._mailbox, self._sends = mailbox, sends

    def finalize(self) -> None:
        """Lets the mailbox go; with its last handle the actor ends."""
        self._mailbox = None

    @torch.no_grad()
    async def send_weights(self, weights: Any, global_steps: int | None = None) -> None:
        """Every trainer rank walks through `weights`, since gathering a sharded tensor takes all; the first one sends.

        Raises:
            TimeoutError: No rollout worker took a portion in `timeout_s`.
        """
        portion: Portion = []
        size = 0
        async for name, tensor in ensure_async_iterator(weights):
            if not self._sends:
                continue
            if portion and size + tensor.nbytes > self.bucket_size:
                await self._put(portion)
                portion, size = [], 0
            # A copy: the trainer may change its own before the last reader has read.
            portion.append((name, tensor.detach().to("cpu", copy=True)))
            size += tensor.nbytes
        if self._sends:
            if portion:
                await self._put(portion)
            await self._within(self._mailbox.put.remote(None), "rollout worker takes the last portion of the weights")

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor on the host) in the order of sending.

        Raises:
            TimeoutError: No portion came in `timeout_s`.
        """
        number = 0
        while True:
            boxed = await self._within(
                self._mailbox.get.remote(number), f"trainer sends portion {number} of the weights"
            )
            if boxed is None:
                return
            for name, tensor in await self._within(boxed[0], f"portion {number} of the weights arrives"):
                yield name, tensor
            number += 1

    async def _put(self, portion: Portion) -> None:
        boxed = [await asyncio.to_thread(ray.put, portion)]
        await self._within(self._mailbox.put.remote(boxed), "rollout worker takes a portion of the weights")

    async def _within(self, reference: Any, awaited: str) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(reference.future()), self.timeout_s)
        except TimeoutError as error:
            raise TimeoutError(
                f"checkpoint engine {NAME}: no {awaited} within {self.timeout_s:g} s; look for the other side's error in "
                "the log, or raise actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.steer_ray.timeout_s"
            ) from error
