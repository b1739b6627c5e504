"""The draw: which candidates become rows of which split.

Splits pick one after the other. Within a split every cell (class of kind x turns) takes its rows in the order of
their keys; a row that repeats one already taken is passed over, and if that empties a cell the plan is made anew
with what is left. So a duplicate costs a row only where there is none to take its place, and what is removed as a
duplicate was removed for a row that is really there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from verl_steer.data.card import canonical
from verl_steer.dialogue import Kind
from verl_steer.synthesis.candidate import Candidate
from verl_steer.synthesis.dedup import Mark, mark
from verl_steer.synthesis.pool import Pool
from verl_steer.synthesis.sampling import plan, quotas
from verl_steer.synthesis.seen import Seen
from verl_steer.synthesis.selection_config import SelectionConfig, SplitConfig
from verl_steer.synthesis.spool import Entry, Spool
from verl_steer.synthesis.written import can_be_written, row_of

CHOSEN, NOT_NEEDED = "chosen", "not_needed"
Tick = Callable[[int], None]


def classes(wanted: SplitConfig) -> dict[str, int]:
    """Classes of kind and the rows wanted of each: benign and harmful, or all together where no ratio is set."""
    if wanted.benign == wanted.harmful == 0:
        return {"any": wanted.size}
    return dict(zip(("benign", "harmful"), quotas(wanted.size, (wanted.benign, wanted.harmful)), strict=True))


def class_of(kind: Kind, wanted: SplitConfig) -> str:
    """The class that a kind counts for."""
    if wanted.benign == wanted.harmful == 0:
        return "any"
    return "harmful" if kind.harmful else "benign"


class Picker:
    """Draws the splits.

    Args:
        spool: Where the candidates lie.
        config: The settings.
    """

    def __init__(self, spool: Spool, config: SelectionConfig) -> None:
        self._spool, self._config = spool, config
        self._seen: dict[str, Seen] = {}

    def pick(self, split: str, entries: Iterable[Entry], tick: Tick = lambda looked_at: None) -> list[Entry]:
        """Draws one split and writes the fate of each of its entries.

        Args:
            split: Its name; each is drawn once.
            entries: Those that its rules let through, in any order.
            tick: Called with the number of entries looked at.

        Returns:
            The chosen ones in the order of their keys.
        """
        wanted = self._config.split(split)
        quota = classes(wanted)
        names = list(quota)
        pool = Pool(
            self._ordered(entries),
            lambda entry: (names.index(class_of(entry.kind, wanted)), entry.turns[split] - 1),
            len(names),
            wanted.siblings == "first",
        )
        held = np.zeros_like(pool.left)
        self._seen[split] = Seen(self._config, split)
        chosen: list[Entry] = []
        while True:
            target = plan(pool.left, held, list(quota.values()), wanted.mean_turns)
            if (target == held).all():
                break
            for cell in pool.cells:
                while held[cell] < target[cell] and (entry := pool.next(cell)):
                    if self._take(entry, split):
                        held[cell] += 1
                        chosen.append(entry)
                        pool.took(entry)
                    tick(1)
        for entry in pool.rest():
            entry.fate[split] = (NOT_NEEDED, "")
        return sorted(chosen, key=lambda entry: entry.key)

    def _take(self, entry: Entry, split: str) -> bool:
        candidate = self._spool.get(entry)
        row = self._mark(candidate, split)
        signature = self._seen[split].signature(row)
        clash = self._seen[split].within(row, signature)
        for other in self._seen.values():
            if clash is None and other.split != split:
                clash = other.across(row, signature, split)
        if clash is None and not can_be_written(candidate, split):
            clash = ("unwritable", "")
        entry.fate[split] = clash or (CHOSEN, "")
        if clash is None:
            self._seen[split].add(row, signature)
        return clash is None

    def _mark(self, candidate: Candidate, split: str) -> Mark:
        row = row_of(candidate, split)
        origin = candidate.script.meta.get("picture")
        return mark(
            row.id, candidate.cluster, row.turns, self._config.near.words, origin if isinstance(origin, str) else ""
        )

    def _ordered(self, entries: Iterable[Entry]) -> Sequence[Entry]:
        """By key; where an id came twice, by content, so that the order in which they came does not matter."""
        ordered = sorted(entries, key=lambda entry: entry.key)
        result: list[Entry] = []
        for entry in ordered:
            if result and result[-1].key == entry.key:
                same = [entry]
                while result and result[-1].key == entry.key:
                    same.append(result.pop())
                result += sorted(same, key=lambda one: self._content(one))
            else:
                result.append(entry)
        return result

    def _content(self, entry: Entry) -> bytes:
        c = self._spool.get(entry)
        rest = repr((c.cluster, c.turn_scores, c.last_alone_safe, c.dialogue_safe, c.success))
        return canonical(c.script) + (canonical(c.dialogue) if c.dialogue else b"") + rest.encode()
