"""Intervals for rates and means over dialogues that come in clusters.

Dialogues grown from one template or one picture succeed and fail together, so n dialogues say less than
n independent ones: an interval that ignores this covers 82–87 % instead of 95 % at an intra-cluster
correlation of 0.1 (`benchmarks/intervals.py`). The design effect, the variance over that of independent
dialogues, is measured from the data, and Wilson's interval is taken at n / (design effect) with Student's
quantile of (clusters − 1) degrees of freedom. Two choices were made by simulation:

- With few successes or few failures the measured design effect is mostly noise, and with none it does not exist. It is
  therefore drawn towards the one that a correlation of `PRIOR_ICC` gives, by the weight events / (events + `PRIOR_EVENTS`).
- It is never taken below 1: clustering is not trusted to add information.

Wilson's form has no interval of zero width, at 0 and 1 neither. Averages over subsets combine such intervals by
Zou and Donner's square-and-add (MOVER, Statistics in Medicine 2008), which keeps that property.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
PRIOR_ICC = 0.1  # intra-cluster correlation assumed where the data cannot say
PRIOR_EVENTS = 4.0  # successes or failures, the rarer of the two, at which data and assumption weigh alike

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: The estimate; NaN if nothing was there to estimate it from.
        low: Lower end; the range's own lower end if nothing was there.
        high: Upper end, likewise.
        n: Dialogues (or pairs, or turns) it rests on.
        clusters: Clusters these come from.
        deff: Design effect used; NaN where none is (averages, means of one run).
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    deff: float = float("nan")


def wilson(rate: ArrayLike, n: ArrayLike, quantile: ArrayLike) -> tuple[Floats, Floats]:
    """Wilson's score interval; `n` may be an effective, fractional number.

    Args:
        rate: Observed rates in [0, 1].
        n: Trials, > 0.
        quantile: Two-sided quantile, e.g. 1.96.
    """
    p, size, z = (np.asarray(x, dtype=np.float64) for x in (rate, n, quantile))
    with np.errstate(invalid="ignore"):
        shrink = 1 + z**2 / size
        centre = (p + z**2 / (2 * size)) / shrink
        half = z / shrink * np.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    # At the ends the two terms cancel, but for rounding.
    return np.where(p <= 0, 0.0, np.clip(centre - half, 0, 1)), np.where(p >= 1, 1.0, np.clip(centre + half, 0, 1))


def clustered_wilson(
    successes: ArrayLike, sizes: ArrayLike, level: float = LEVEL
) -> tuple[Floats, Floats, Floats, Floats]:
    """Rate, lower and upper end and design effect of clustered trials.

    Args:
        successes: By cluster, shape (..., clusters); fractions of a trial are allowed.
        sizes: Trials by cluster, > 0, of the same shape.
        level: Of the interval.

    Returns:
        Four arrays of shape (...). One cluster alone says nothing about the others: its interval is [0, 1].
    """
    y, n = np.asarray(successes, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    clusters = y.shape[-1]
    total, events = n.sum(-1), y.sum(-1)
    rate = events / total
    deff = design_effect(y, n)
    if clusters < 2:
        return rate, np.zeros_like(rate), np.ones_like(rate), deff
    quantile = stats.t.ppf((1 + level) / 2, clusters - 1)
    low, high = wilson(rate, total / deff, quantile)
    return rate, low, high, deff


def design_effect(successes: Floats, sizes: Floats) -> Floats:
    """Variance of a clustered rate over that of independent trials, stabilised as the module says; >= 1.

    The measured part is the ratio estimator's linearised variance, m/(m−1)·Σ(y_c − p·n_c)²/n², over p(1−p)/n.
    """
    clusters = successes.shape[-1]
    total, events = sizes.sum(-1), successes.sum(-1)
    rate = events / total
    assumed = 1 + ((sizes**2).sum(-1) / total - 1) * PRIOR_ICC
    residual = ((successes - rate[..., None] * sizes) ** 2).sum(-1)
    variance = residual / total**2 * clusters / max(clusters - 1, 1)
    independent = rate * (1 - rate) / total
    measured = np.divide(variance, independent, out=np.array(assumed), where=independent > 0)
    rarer = np.minimum(events, total - events)
    weight = rarer / (rarer + PRIOR_EVENTS) if clusters > 1 else np.zeros_like(rarer)
    deff: Floats = np.maximum(weight * measured + (1 - weight) * assumed, 1.0)
    return deff


def by_cluster(values: Floats, clusters: NDArray[Any]) -> tuple[Floats, Floats]:
    """Sums and counts by cluster label, in the order of the sorted labels."""
    _, place = np.unique(clusters, return_inverse=True)
    return np.bincount(place, weights=values).astype(np.float64), np.bincount(place).astype(np.float64)


def proportion(passed: ArrayLike, clusters: NDArray[Any], level: float = LEVEL) -> Estimate:
    """A rate over dialogues, one boolean and one cluster label each."""
    values = np.asarray(passed, dtype=np.float64)
    if values.size == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0, 0)
    sums, sizes = by_cluster(values, clusters)
    rate, low, high, deff = (float(x) for x in clustered_wilson(sums, sizes, level))
    return Estimate(rate, low, high, values.size, sums.size, deff)


def mean(values: ArrayLike, clusters: NDArray[Any], bottom: float, top: float, level: float = LEVEL) -> Estimate:
    """A mean of scores in [bottom, top].

    See `bounded`; the rarer end is that of the scores away from `bottom`, or from `top`.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        return Estimate(float("nan"), bottom, top, 0, 0)
    sums, sizes = by_cluster(x, clusters)
    m, centre = sums.size, float(x.mean())
    if m < 2:
        return Estimate(centre, bottom, top, x.size, m)
    variance = m / (m - 1) * float(((sums - centre * sizes) ** 2).sum()) / x.size**2
    events = min(int((x > bottom).sum()), int((x < top).sum()))
    low, high = bounded(centre, variance, sizes, events, bottom, top, level)
    return Estimate(centre, low, high, x.size, m)


def bounded(
    centre: float, variance: float, sizes: Floats, events: float, bottom: float, top: float, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of a clustered mean on a scale with ends, where a t interval is too short near them.

    Wilson's interval of the mean's place on the scale, at the number of independent trials of ends only that would have this
    variance; with few events, or where all clusters agree, that number is drawn towards the one of clustered trials.

    Args:
        centre: The mean.
        variance: Of the mean, clusters taken into account.
        sizes: Dialogues by cluster, at least two clusters.
        events: How many dialogues the variance was measured on, those that all agree left out.
        bottom: Lower end of the scale.
        top: Upper end.
        level: Of the interval.
    """
    n, span = float(sizes.sum()), top - bottom
    place = min(max((centre - bottom) / span, 0.0), 1.0)
    trials = place * (1 - place) / n
    assumed = 1 + (float((sizes**2).sum()) / n - 1) * PRIOR_ICC
    weight = events / (events + PRIOR_EVENTS)
    measured = variance / span**2 / trials if min(trials, variance / span**2) > 1e-15 else assumed
    deff = measured**weight * assumed ** (1 - weight)  # scores vary less than trials of ends: a ratio, not a difference
    low, high = wilson(place, n / deff, stats.t.ppf((1 + level) / 2, sizes.size - 1))
    return bottom + span * float(low), bottom + span * float(high)


def average(parts: Sequence[Estimate]) -> Estimate:
    """The unweighted average of independent estimates, by square-and-add of their distances to their ends.

    With a part that rests on nothing the average is unknown; it is not the average of the others. Clusters that reach over
    several parts would make it a little too narrow or too wide; subsets of one bench do not share clusters.

    Args:
        parts: At least one.
    """
    if any(part.n == 0 for part in parts):
        bottom, top = sum(part.low for part in parts) / len(parts), sum(part.high for part in parts) / len(parts)
        return Estimate(float("nan"), bottom, top, sum(p.n for p in parts), sum(p.clusters for p in parts))
    k = len(parts)
    centre = sum(part.value for part in parts) / k
    below = sum((part.value - part.low) ** 2 for part in parts) ** 0.5 / k
    above = sum((part.high - part.value) ** 2 for part in parts) ** 0.5 / k
    return Estimate(
        centre, centre - below, centre + above, sum(part.n for part in parts), sum(part.clusters for part in parts)
    )
