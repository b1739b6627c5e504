"""How many rows of each kind and length a split takes: sizes, the ratio of kinds, the mean number of turns.

A split is a table of cells (class of kind x number of turns). Lengths as they come are tilted by e^(lambda T), the
least change (in relative entropy) that moves a mean; lambda is found by bisection, within what is there. Every
length that occurs stays: one row at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.int64]
_STEPS = 60  # halvings: to the last bit of a double
_TILT = 5.0  # e^5: with one turn more a row is 148 times as likely; nothing but the longest is left
_SCALE = 100.0  # logarithm of the largest scale, above what the steepest tilt takes away over ten lengths


def quotas(size: int, ratio: Sequence[float]) -> list[int]:
    """Rows of each class; the largest remainders get the rows left over.

    Args:
        size: Rows in all.
        ratio: One weight a class, not all zero.
    """
    exact = [size * weight / sum(ratio) for weight in ratio]
    return [int(n) for n in _rounded(np.array(exact), size, np.zeros(len(exact)), np.full(len(exact), size))]


def plan(left: Cells, held: Cells, wanted: Sequence[int], mean: float | None) -> Cells:
    """Rows to take from each cell, those already held included.

    Args:
        left: (classes, lengths 1..n) rows not yet looked at.
        held: The same, rows already taken; the plan never gives one back.
        wanted: Rows of each class.
        mean: Average number of turns to come near to, over all classes; None: lengths as they come.

    Returns:
        (classes, lengths): at least `held`, at most `held + left`; a class gets what is wanted or all there is.
    """
    upper = held + left
    lower = _covered(left, held, wanted)
    sizes = [min(n, int(upper[c].sum())) for c, n in enumerate(wanted)]
    turns = np.arange(1, left.shape[1] + 1)

    def fill(tilt: float) -> NDArray[np.float64]:
        # Shifted so that no weight overflows; the fill finds its own scale.
        weights = upper * np.exp(tilt * (turns - turns[-1 if tilt > 0 else 0]))
        return np.stack([_fill(weights[c], lower[c], upper[c], n) for c, n in enumerate(sizes)])

    low, high = -_TILT, _TILT
    if mean is None or not sum(sizes):
        low = high = 0.0
    for _ in range(_STEPS if mean is not None else 0):
        middle = (low + high) / 2
        cells = fill(middle)
        if (cells.sum(axis=0) @ turns) / max(1, sum(sizes)) < (mean or 0.0):
            low = middle
        else:
            high = middle
    cells = fill((low + high) / 2)
    return np.stack([_rounded(cells[c], n, lower[c], upper[c]) for c, n in enumerate(sizes)])


def _covered(left: Cells, held: Cells, wanted: Sequence[int]) -> Cells:
    """What must be taken at least: what is held, and of each length that nobody holds one row, of the class with most."""
    lower = held.copy()
    for t in range(left.shape[1]):
        if held[:, t].sum():
            continue
        for c in sorted(range(left.shape[0]), key=lambda c: (-int(left[c, t]), c)):
            if left[c, t] and lower[c].sum() < wanted[c]:
                lower[c, t] += 1
                break
    return lower


def _fill(weights: NDArray[np.float64], lower: Cells, upper: Cells, size: int) -> NDArray[np.float64]:
    """`scale * weights` within the bounds, the scale such that the sum is `size` (bisection over its logarithm)."""
    low, high = -_SCALE, _SCALE
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if np.clip(math.exp(middle) * weights, lower, upper).sum() < size:
            low = middle
        else:
            high = middle
    filled: NDArray[np.float64] = np.clip(math.exp(high) * weights, lower, upper)
    return filled


def _rounded(exact: NDArray[np.float64], size: int, lower: NDArray[np.generic], upper: NDArray[np.generic]) -> Cells:
    """Whole numbers near `exact`, within the bounds and `size` in all: largest remainders first."""
    whole = np.clip(np.floor(exact + 1e-9), lower, upper).astype(np.int64)
    ranked = sorted(range(len(exact)), key=lambda n: (whole[n] - exact[n], n))
    while (short := size - int(whole.sum())) != 0:
        step = 1 if short > 0 else -1
        room = [n for n in ranked if lower[n] <= whole[n] + step <= upper[n]]
        if not room:
            break
        for n in (room if step > 0 else room[::-1])[: abs(short)]:
            whole[n] += step
    return whole
