"""Runs a build: seeds in shards, rows in flight bounded, answers in journals, results in finished shards.

Stopped at any instant (Ctrl-C, SIGKILL), the same command goes on: finished shards are skipped, rows of the
others replay their answers. A shard's files depend on its seeds and answers alone, not on who came first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from verl_steer.chat.client import Chat
from verl_steer.chat.content import digest_of
from verl_steer.chat.journal import Journal
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import VERSION, SeedRow
from verl_steer.roles.fill import guidelines, prompt_text
from verl_steer.synthesis.calls import Calls, Cast
from verl_steer.synthesis.config import SynthConfig
from verl_steer.synthesis.review import Review, approval
from verl_steer.synthesis.row import STOPS, Ended, Harvest, grow
from verl_steer.synthesis.seeds import SeedFiles
from verl_steer.synthesis.shards import Account, Shards

#: Called with the account of finished shards, and the seeds ended in all.
Progress = Callable[[Account, int], None]
_PROMPTS = ("probe", "generator", "forensics", "framing", "planner", "red", "success", "tutor")


class Build:
    """One build: seeds, configuration, folder.

    Args:
        config: Validated.
        seeds: Parquet files of the seed layout.
        out: The build's folder.

    Raises:
        ConfigError: The red team is on and its categories are not reviewed, or no seed is of a source that is held.
        DataError: A file is no seed split, or the folder holds another build.
    """

    def __init__(self, config: SynthConfig, seeds: Iterable[Path], out: Path) -> None:
        self.config = config
        self.seeds = SeedFiles(tuple(seeds))
        self.seeds.check_sources("held_sources", config.held_sources)
        self.review, self.approved = approval(config.red_team.enabled, config.red_team.review)
        self.shards = Shards(out, plan_of(config, self.seeds, self.review))
        if self.review is not None:
            self.review.write_warning(out)

    def numbers(self) -> range:
        """All shards."""
        return range(-(-len(self.seeds) // self.config.run.shard_rows))

    def open(self) -> list[int]:
        """The shards that are not done."""
        return [number for number in self.numbers() if self.shards.account(number) is None]

    async def run(self, numbers: Iterable[int], progress: Progress = lambda account, rows: None) -> None:
        """Works some shards, as many rows at once as the configuration allows.

        Args:
            numbers: In order.
            progress: Called whenever a seed or a shard has ended.

        Raises:
            DataError: The servers, a key or the disk stop the build; the message says which.
        """
        run = self.config.run
        cast = Cast(self.config, self.shards.fence_key)
        # Few shards are open at once: their seeds, results and journals' indices are what is held in memory.
        window = asyncio.Semaphore(run.rows_in_flight // run.shard_rows + 2)
        slots = asyncio.Semaphore(run.rows_in_flight)
        done, ended = self.shards.total(), 0

        def row_ended() -> None:
            nonlocal ended
            ended += 1
            progress(done, ended)

        async def shard(number: int) -> None:
            nonlocal done
            try:
                account = await self._shard(number, cast, slots, row_ended)
            finally:
                window.release()
            done += account  # not `done += await`: that adds to what `done` was before, and other shards end meanwhile
            progress(done, ended)

        try:
            with _fewer_collections():
                async with asyncio.TaskGroup() as group:
                    for number in numbers:
                        await window.acquire()
                        group.create_task(shard(number))
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            await cast.aclose()

    async def _shard(self, number: int, cast: Cast, slots: asyncio.Semaphore, row_ended: Callable[[], None]) -> Account:
        size = self.config.run.shard_rows
        rows = list(self.seeds.slice(number * size, (number + 1) * size))
        async with _journal(self.shards.journal(number)) as journal:
            chats = cast.chats(journal)

            async def one(place: int, row: SeedRow | RowError) -> Harvest:
                async with slots:
                    found = await self._row(place, row, cast, chats)
                row_ended()
                return found

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(place, row)) for place, row in enumerate(rows, number * size)]
            unread = sum(isinstance(row, RowError) for row in rows)
        return self.shards.commit(number, [task.result() for task in tasks], unread)

    async def _row(self, place: int, row: SeedRow | RowError, cast: Cast, chats: dict[str, Chat]) -> Harvest:
        if isinstance(row, RowError):
            return Harvest("", failed=[Ended(f"row {place}", f"not a seed: {row}")])
        return await grow(row, Calls(cast, chats, row.id), self.approved)


def plan_of(config: SynthConfig, seeds: SeedFiles, review: Review | None) -> dict[str, Any]:
    """Everything that candidates depend on: a folder belongs to one plan."""
    plain = dataclasses.asdict(config)
    for role in plain["roles"].values():  # where a model is served, and how fast, does not change what it says
        for name in ("base_urls", "api_key_env", "concurrency", "timeout_s", "outage_s", "structured_output"):
            role.pop(name)
    plain["run"].pop("rows_in_flight")
    plain["red_team"].pop("review")
    prompts = {role: prompt_text(role) for role in _PROMPTS} | {"blue": guidelines(config.guidelines)}
    return {
        "version": VERSION,
        "seeds": seeds.fingerprint(),
        "settings": plain,
        "prompts": digest_of(prompts),
        "reviewed": review.categories if review is not None else None,
    }


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """Hundreds of rows under way are thousands of live objects that every round of the collector looks at, in vain:
    with Python's own threshold it takes a fifth of the processor."""
    before = gc.get_threshold()
    gc.set_threshold(20_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@asynccontextmanager
async def _journal(path: Path) -> AsyncIterator[Journal]:
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that stopped the build, as one line where it is no fault of ours."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return DataError(f"stopped: {error}; the same command goes on where it was") if isinstance(error, STOPS) else error
