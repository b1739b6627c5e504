"""What the rows of one split rule out: for further rows of it, and for rows of another split."""

from __future__ import annotations

from typing import Any

from verl_steer.synthesis.dedup import Mark, NearIndex
from verl_steer.synthesis.selection_config import SelectionConfig

_ACROSS = ("cluster", "picture", "exact_across", "near_across")


class Seen:
    """The rows of a split, as far as others are compared with them.

    Args:
        config: Which rules hold, and how near is near.
        split: Name of the split; pictures are held out of the bench, and the bench's of the others.
    """

    def __init__(self, config: SelectionConfig, split: str) -> None:
        self.split = split
        self._config = config
        self._ids: set[str] = set()
        self._clusters: dict[str, str] = {}
        self._pictures: dict[str, str] = {}
        self._digests: dict[bytes, str] = {}
        self._near = NearIndex(config.near.threshold)

    def signature(self, row: Mark) -> Any:
        """Of use to every `Seen` of the same settings."""
        return self._near.signature(row.shingles)

    def add(self, row: Mark, signature: Any) -> None:
        """Takes a row in; the first one with a seed, a picture or a text stands for it."""
        self._ids.add(row.id)
        self._clusters.setdefault(row.cluster, row.id)
        self._digests.setdefault(row.digest, row.id)
        for picture in row.pictures:
            self._pictures.setdefault(picture, row.id)
        self._near.add(row, signature)

    def within(self, row: Mark, signature: Any) -> tuple[str, str] | None:
        """The rule by which a further row of this split is one too many, and the row it repeats; or None."""
        if row.id in self._ids:
            return "same_id", row.id  # an id is given once in a file, so this cannot be turned off
        if self._config.on("exact") and (other := self._digests.get(row.digest)):
            return "exact", other
        if self._config.on("near") and (found := self._near.find(row, signature, self._config.near.pictures)):
            return "near", found.id
        return None

    def across(self, row: Mark, signature: Any, split: str) -> tuple[str, str] | None:
        """The first rule by which a row of another split may not stand beside this one, and the row it meets."""
        return next(((rule, other) for rule, other in self.overlaps(row, signature, split)), None)

    def overlaps(self, row: Mark, signature: Any, split: str) -> list[tuple[str, str]]:
        """All of them."""
        found = {
            "cluster": self._clusters.get(row.cluster),
            "picture": self._shown(row) if "bench" in (split, self.split) else None,
            "exact_across": self._digests.get(row.digest),
            "near_across": self._alike(row, signature),
        }
        return [(rule, other) for rule in _ACROSS if self._config.on(rule) and (other := found[rule]) is not None]

    def _shown(self, row: Mark) -> str | None:
        return next((self._pictures[p] for p in sorted(row.pictures) if p in self._pictures), None)

    def _alike(self, row: Mark, signature: Any) -> str | None:
        if not self._config.on("near_across"):
            return None
        found = self._near.find(row, signature, self._config.near.across, nearest=False)
        return None if found is None else found.id
