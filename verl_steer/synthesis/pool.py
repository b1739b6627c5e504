"""The candidates of one split, by cell (class of kind x number of turns), in the order in which they are drawn."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from verl_steer.dialogue import MAX_TURNS
from verl_steer.synthesis.sampling import Cells
from verl_steer.synthesis.spool import Entry

Cell = tuple[int, int]


class Pool:
    """Hands out each candidate once.

    Args:
        entries: In the order of the draw.
        cell_of: Candidate -> its cell.
        classes: Number of classes.
        siblings_first: A candidate goes before the others of its cell once a row of its seed was taken.

    Attributes:
        left: (classes, lengths) candidates not yet handed out.
    """

    def __init__(
        self, entries: Sequence[Entry], cell_of: Callable[[Entry], Cell], classes: int, siblings_first: bool
    ) -> None:
        self._cell_of = cell_of
        self._waiting: dict[Cell, deque[Entry]] = defaultdict(deque)
        self._first: dict[Cell, deque[Entry]] = defaultdict(deque)
        self._out: set[int] = set()
        self._seeds: dict[str, list[Entry]] = defaultdict(list)
        self.left: Cells = np.zeros((classes, MAX_TURNS), dtype=np.int64)
        for entry in entries:
            self._waiting[cell_of(entry)].append(entry)
            self.left[cell_of(entry)] += 1
            if siblings_first:
                self._seeds[entry.cluster].append(entry)
        self.cells = sorted(self._waiting)

    def next(self, cell: Cell) -> Entry | None:
        """The next candidate of a cell, or None."""
        for queue in (self._first[cell], self._waiting[cell]):
            while queue:
                entry = queue.popleft()
                if id(entry) not in self._out:
                    self._out.add(id(entry))
                    self.left[cell] -= 1
                    return entry
        return None

    def took(self, entry: Entry) -> None:
        """A candidate has become a row: its siblings go first from now on, if they are to."""
        for sibling in self._seeds.pop(entry.cluster, ()):
            self._first[self._cell_of(sibling)].append(sibling)

    def rest(self) -> Iterator[Entry]:
        """Candidates that were never handed out."""
        for queue in self._waiting.values():
            yield from (entry for entry in queue if id(entry) not in self._out)
