"""When two rows say the same: exactly (normalised text and pictures) or nearly (Jaccard of word shingles).

Near duplicates are found by MinHash and an LSH index (datasketch) and then *verified* by the exact Jaccard
similarity, so the index may be generous: what it misses is a matter of recall alone, and it is laid out to find
99 % at the threshold. Rows are compared by what the user says; replies are not looked at.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verl_steer.data.rows import DataError
from verl_steer.data.schemas import Question
from verl_steer.extras import install_command

PERMUTATIONS = 128
RECALL = 0.99  # at the threshold; more similar rows are found with more certainty
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# Scripts without spaces: each sign is a word, else a whole sentence would be one.
_SIGNS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+")

Shingles = NDArray[np.uint64]


@dataclass(frozen=True)
class Mark:
    """What is compared of a row.

    Attributes:
        id: The row's id.
        cluster: Its seed.
        digest: Of the normalised text and the pictures.
        shingles: Sorted 64-bit hashes of its word shingles, unique.
        pictures: SHA-256 of its pictures, also of the one that a perturbed picture was made from.
    """

    id: str
    cluster: str
    digest: bytes
    shingles: Shingles
    pictures: frozenset[str]


def normalise(text: str) -> str:
    """Words in one case and one form, one space apart; a text without a word stays as it is but for its case."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).casefold()
    return " ".join(_WORD.findall(plain)) or plain.strip()


def mark(row_id: str, cluster: str, turns: Sequence[Question], words: int, origin: str = "") -> Mark:
    """The mark of a row.

    Args:
        row_id: Its id.
        cluster: Its seed.
        turns: Its user turns.
        words: Words a shingle; a shorter turn is one shingle.
        origin: SHA-256 of the picture that the seed came with, or "".
    """
    texts = [normalise(turn.text) for turn in turns]
    pictures = [image.sha256 for turn in turns for image in turn.images]
    digest = hashlib.sha256("\n".join([*texts, "", *pictures]).encode()).digest()
    return Mark(row_id, cluster, digest, _shingles(texts, words), frozenset(pictures) | ({origin} - {""}))


def jaccard(one: Shingles, other: Shingles) -> float:
    """Shared over all shingles, in [0, 1]."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def bands(threshold: float) -> tuple[int, int]:
    """Bands and rows of the index: the fewest bands that find a pair at the threshold with `RECALL`."""
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1


class NearIndex:
    """Rows by the likeness of their text.

    Args:
        threshold: Jaccard similarity from which two rows are near.

    Raises:
        DataError: datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise DataError(f"near duplicates need datasketch: {install_command('synth')}") from error
        self.threshold = threshold
        count, rows = bands(threshold)
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=int)  # shingles are hashes already
        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=(count, rows), hashfunc=_bucket)
        self._marks: list[Mark] = []

    def signature(self, shingles: Shingles) -> Any:
        """The MinHash of a row; the same for every index, so it is made once."""
        signature = self._empty.copy()
        signature.update_batch((shingles & np.uint64(0xFFFFFFFF)).tolist())
        return signature

    def add(self, row: Mark, signature: Any) -> None:
        """Takes a row in."""
        self._index.insert(len(self._marks), signature)
        self._marks.append(row)

    def find(self, row: Mark, signature: Any, pictures: str, nearest: bool = True) -> Mark | None:
        """A row that is near enough, or None.

        Args:
            row: The row to compare.
            signature: Its signature.
            pictures: "any", or "same": only rows that share a picture, or have none either.
            nearest: The nearest one; else the first that was added, which spares the comparison with all others:
                of texts by one template each is near every other.
        """
        best, found = self.threshold, None
        for number in sorted(self._index.query(signature)):
            other = self._marks[number]
            if pictures == "same" and not _share(row.pictures, other.pictures):
                continue
            if _at_most(row.shingles, other.shingles) < best:
                continue
            if (likeness := jaccard(row.shingles, other.shingles)) >= best and (found is None or likeness > best):
                best, found = likeness, other
                if not nearest or best == 1:
                    break
        return found


def _at_most(one: Shingles, other: Shingles) -> float:
    """What the Jaccard similarity can be at most, by the sizes alone."""
    return min(len(one), len(other)) / max(1, len(one), len(other))


def _share(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one & other) or not (one or other)


def _bucket(band: bytes) -> bytes:
    """A short name for a band's values: the index keeps one for each band of each row."""
    return hashlib.blake2b(band, digest_size=8).digest()


def _shingles(texts: Sequence[str], words: int) -> Shingles:
    """Within a turn, not across turns."""
    found: set[bytes] = set()
    for text in texts:
        said = text.split()
        pieces = [" ".join(said[n : n + words]) for n in range(max(1, len(said) - words + 1))]
        found |= {hashlib.blake2b(piece.encode(), digest_size=8).digest() for piece in pieces}
    return np.sort(np.frombuffer(b"".join(sorted(found)), dtype=np.uint64))
