"""The seeds of a build: parquet files of the seed layout, read by place, so that a shard needs no other shard's rows."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from verl_steer.checked import ConfigError
from verl_steer.data.parts import file_hash
from verl_steer.data.rows import DataError, RowError, reading_parquet
from verl_steer.data.schemas import SeedRow
from verl_steer.data.splits import LAYOUTS, layout_of

_LAYOUT = LAYOUTS["seed"]


class SeedFiles:
    """Some files as one list of seeds.

    Args:
        paths: At least one.

    Raises:
        DataError: A file is no seed split, or damaged.

    Attributes:
        sources: The names that stand in the column `source`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise DataError("no seeds were given; make them with `verl-steer data convert SOURCE FILES --to seed`")
        self.paths = tuple(paths)
        self._groups: list[tuple[Path, int, int]] = []  # file, row group, rows
        for path in self.paths:
            if (name := layout_of(path).name) != "seed":
                raise DataError(f"{path} is a {name} split, not seeds; convert its source with --to seed")
            with pq.ParquetFile(path) as file:
                self._groups += [
                    (path, n, file.metadata.row_group(n).num_rows) for n in range(file.metadata.num_row_groups)
                ]
        self.sources: set[str] = set()
        self._repeated = self._scan()

    def _scan(self) -> frozenset[int]:
        """Takes down the sources; returns places of seeds whose id an earlier one has, as they would meet its answers
        in a journal."""
        seen: set[bytes] = set()
        repeated, number = [], 0
        for path in self.paths:
            with reading_parquet(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["id", "source"], use_threads=False):
                    columns = batch.to_pydict()
                    self.sources.update(name for name in columns.get("source", ()) if name is not None)
                    for name in columns["id"]:
                        key = hashlib.blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=12).digest()
                        if key in seen:
                            repeated.append(number)
                        seen.add(key)
                        number += 1
        return frozenset(repeated)

    def check_sources(self, key: str, names: Iterable[str]) -> None:
        """Are there seeds of every source that a setting names? Else it does nothing, and says nothing of it.

        Raises:
            ConfigError: The setting, the name, the nearest right one, and all there are.
        """
        for name in names:
            if name not in self.sources:
                close = difflib.get_close_matches(name, sorted(self.sources), n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"{key}={name!r} is the source of no seed{hint} (theirs: {sorted(self.sources)})")

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self._groups)

    def fingerprint(self) -> list[str]:
        """SHA-256 of every file: a build belongs to its seeds."""
        return [file_hash(path) for path in self.paths]

    def slice(self, start: int, stop: int) -> Iterator[SeedRow | RowError]:
        """Seeds `start` to `stop - 1`; one that breaks a rule of the schemas comes as its fault."""
        first = 0
        for path, group, rows in self._groups:
            if first < stop and first + rows > start:
                yield from self._part(path, group, first, max(start, first), min(stop, first + rows))
            first += rows

    def _part(self, path: Path, group: int, first: int, start: int, stop: int) -> Iterator[SeedRow | RowError]:
        number = first
        with reading_parquet(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64, row_groups=[group], use_threads=False):
                if number + batch.num_rows > start and number < stop:
                    wanted = batch.slice(
                        max(0, start - number), min(stop, number + batch.num_rows) - max(start, number)
                    )
                    for offset, columns in enumerate(wanted.to_pylist()):
                        yield self._seed(columns, max(start, number) + offset)
                number += batch.num_rows
                if number >= stop:
                    return

    def _seed(self, columns: dict[str, object], number: int) -> SeedRow | RowError:
        if number in self._repeated:
            return RowError(f"its id {columns['id']!r} stands in an earlier row")
        try:
            seed = _LAYOUT.from_columns(columns, f"seed {number}")
        except RowError as error:
            return error
        assert isinstance(seed, SeedRow)
        return seed
