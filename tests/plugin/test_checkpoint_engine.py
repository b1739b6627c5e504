"""Weights through Ray's object store: whole, in order, in portions, on every rollout worker; and no endless wait."""

from __future__ import annotations

import asyncio

import pytest
import torch

pytest.importorskip("verl")
from verl.checkpoint_engine.base import CheckpointEngineRegistry

from verl_steer.plugin import checkpoint_engine
from verl_steer.plugin.checkpoint_engine import NAME, WINDOW, Mailbox, RayCheckpointEngine

WEIGHTS = [
    ("a", torch.arange(6, dtype=torch.float32).view(2, 3)),
    ("b", torch.ones(5, dtype=torch.bfloat16)),
    ("large", torch.full((100,), 2.0)),
    ("scalar", torch.tensor(3.0)),
]


class Handle:
    """A Ray actor's handle, in this process: `handle.put.remote(…)` runs the method as a task."""

    def __init__(self, mailbox):
        self.mailbox = mailbox

    def __getattr__(self, name):
        method = getattr(self.mailbox, name)
        return type(
            "Method", (), {"remote": staticmethod(lambda *args: Reference(asyncio.ensure_future(method(*args))))}
        )


class Reference:
    """A Ray object reference."""

    def __init__(self, task):
        self.task = task


@pytest.fixture
def in_process(monkeypatch):
    """Ray's store and futures, in this process; what the engine does with them stays as it is."""

    async def within(self, reference, awaited):
        found = reference.task if isinstance(reference, Reference) else asyncio.sleep(0, reference)
        try:
            return await asyncio.wait_for(found, self.timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"no {awaited}") from error

    monkeypatch.setattr(RayCheckpointEngine, "_within", within)
    monkeypatch.setattr(checkpoint_engine.ray, "put", lambda portion: list(portion))


def engines(mailbox, readers: int, bucket_size: int = 40, timeout_s: float = 5.0):
    made = [RayCheckpointEngine(bucket_size, timeout_s=timeout_s) for _ in range(readers + 2)]
    for rank, engine in enumerate(made):
        engine.init_process_group(mailbox=mailbox, sends=rank == 0)
    return made[:2], made[2:]


async def received(engine):
    return [(name, tensor) async for name, tensor in engine.receive_weights()]


async def test_every_reader_gets_every_tensor_as_it_was_and_the_window_bounds_what_waits(in_process):
    box = Mailbox(readers=2)
    senders, readers = engines(Handle(box), 2)
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, len(box._portions))
            await asyncio.sleep(0)

    watcher = asyncio.ensure_future(watch())
    walked = []

    def weights():
        for item in WEIGHTS:
            walked.append(item[0])
            yield item

    *_, first, second = await asyncio.gather(
        senders[0].send_weights(iter(WEIGHTS)), senders[1].send_weights(weights()), *map(received, readers)
    )
    watcher.cancel()
    for got in (first, second):
        assert [name for name, _ in got] == [name for name, _ in WEIGHTS]
        for (_, tensor), (_, sent) in zip(got, WEIGHTS, strict=True):
            assert tensor.dtype == sent.dtype and torch.equal(tensor, sent)
            assert tensor.data_ptr() != sent.data_ptr(), "the trainer may change its own meanwhile"
    assert walked == [name for name, _ in WEIGHTS], "a rank that does not send still takes part in the gathering"
    assert 0 < most <= WINDOW and not box._portions


async def test_a_side_that_never_comes_is_an_error_that_says_who(in_process):
    senders, readers = engines(Handle(Mailbox(readers=1)), 1, timeout_s=0.05)
    with pytest.raises(TimeoutError, match="trainer sends portion 0"):
        await received(readers[0])
    with pytest.raises(TimeoutError, match="rollout worker takes"):
        await senders[0].send_weights(iter(WEIGHTS))


def test_verl_finds_it_by_name():
    assert CheckpointEngineRegistry.get(NAME) is RayCheckpointEngine


@pytest.mark.train
def test_the_topology_makes_a_mailbox_that_real_ray_carries():
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        to_senders, to_readers = RayCheckpointEngine.build_topology(2, 1, [None] * 3)
        made = [RayCheckpointEngine(40, timeout_s=60.0) for _ in range(3)]
        pairs = zip(
            to_senders["mailbox"] + to_readers["mailbox"], to_senders["sends"] + to_readers["sends"], strict=True
        )
        for engine, (mailbox, sends) in zip(made, pairs, strict=True):
            engine.init_process_group(mailbox=mailbox, sends=sends)

        async def all_of_it():
            return await asyncio.gather(
                made[0].send_weights(iter(WEIGHTS)), made[1].send_weights(iter(WEIGHTS)), received(made[2])
            )

        *_, got = asyncio.run(all_of_it())
        assert [name for name, _ in got] == [name for name, _ in WEIGHTS]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, WEIGHTS, strict=True))
    finally:
        ray.shutdown()
