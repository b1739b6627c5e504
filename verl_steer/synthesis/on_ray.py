"""Past one machine: the same shards by the same row function, as a map of Ray Data.

Workers share the build's folder (a network disk) and write each shard as the local runner does, so the output is
equal. A journal has one writer: a shard is worked by one worker at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_steer.data.rows import DataError
from verl_steer.synthesis.config import SynthConfig
from verl_steer.synthesis.runner import Build, Progress


class ShardWorker:
    """Works shards, one after the other; made once in each of Ray's worker processes.

    Args:
        config: The build's; `concurrency` and `run.rows_in_flight` hold for each worker.
        seeds: As in `Build`.
        out: The build's folder.
    """

    def __init__(self, config: SynthConfig, seeds: Sequence[Path], out: Path) -> None:
        self._build = Build(config, seeds, out)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One shard; one that is done is left alone: Ray may ask again for what a lost worker had finished."""
        number = int(row["shard"])
        if self._build.shards.account(number) is None:
            asyncio.run(self._build.run([number]))
        account = self._build.shards.account(number)
        assert account is not None, "run commits its shards or raises"
        return {"shard": number, "seeds": account.seeds, "failed": account.failed, "kept": account.candidates.total()}


def run_on_ray(
    config: SynthConfig, seeds: Sequence[Path], out: Path, numbers: Sequence[int], workers: int, progress: Progress
) -> None:
    """Works the open shards on a Ray cluster: the one that RAY_ADDRESS names, or one of this machine.

    Args:
        config: Validated.
        seeds: Files that every worker can read.
        out: Folder that every worker can write.
        numbers: The shards to work.
        workers: Processes.
        progress: Called whenever a shard has ended.

    Raises:
        DataError: A worker was stopped by its servers, a key or the disk.
    """
    import ray
    import ray.data
    from ray.exceptions import RayTaskError

    if not numbers:
        return
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        paths = [path.resolve() for path in seeds]
        build = Build(config, paths, out)
        done, ended = build.shards.total(), 0
        found = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers)).map(
            ShardWorker,
            fn_constructor_args=(config, paths, out.resolve()),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
            num_cpus=1,
        )
        for row in found.iter_rows():
            account = build.shards.account(row["shard"])
            assert account is not None, "a worker says that it is done"
            done, ended = done + account, ended + account.seeds
            progress(done, ended)
    except RayTaskError as error:
        raise DataError(f"a worker of Ray ended with {error.cause}") from error
    finally:
        if ours:
            ray.shutdown()
