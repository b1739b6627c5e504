"""Is one model better than another? Paired differences over one bench, and over training seeds.

Two runs of one bench answer the same rows, so the difference is taken row by row, over the rows judged throughout in
*both*, and clusters, not rows, are the independent units. This speaks of these two checkpoints. Of two *methods* only several
training seeds speak: then the unit is the seed, with a t interval and the exact sign-flip test over per-seed
differences (`over_seeds`). Several measures are several chances: p values come with Holm's correction too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from verl_steer.bench.intervals import LEVEL, PRIOR_EVENTS, PRIOR_ICC, Estimate, Floats, by_cluster
from verl_steer.bench.judged import Labels, Verdicts
from verl_steer.bench.metrics import MEASURES, Measure, units
from verl_steer.bench.survival import HORIZON, cluster_counts, decided, jackknife, observe, restricted

DRAWS = 20_000  # sign flips where they cannot be enumerated
DRAWN_AT_ONCE = 2_000_000  # signs, 16 MB
ENUMERATED = 20  # seeds or clusters up to which all 2^n sign flips are gone through


@dataclass(frozen=True)
class Difference:
    """Second minus first.

    Attributes:
        measure: Name of the measure.
        label: For people.
        first: Over the pairs compared.
        second: Likewise.
        difference: With its interval; `n` counts pairs compared.
        left_out: Units that are not judged throughout in both runs; of safe turns, dialogues not decided in both.
        p: Two-sided sign-flip test over clusters (or seeds); NaN if nothing could be compared.
        holm: `p` corrected for the family of measures; NaN likewise.
        better: "first", "second", or "" where the interval holds 0 or `holm` is 0.05 or more.
    """

    measure: str
    label: str
    first: float
    second: float
    difference: Estimate
    left_out: int
    p: float
    holm: float = float("nan")
    better: str = ""


def paired_rate(first: Floats, second: Floats, clusters: Labels, level: float = LEVEL) -> Estimate:
    """Difference of two rates over the same units, second minus first; see `paired_mean`."""
    return paired_mean(first, second, clusters, 1.0, level)


def paired_mean(first: Floats, second: Floats, clusters: Labels, span: float, level: float = LEVEL) -> Estimate:
    """Difference of two means over the same units, second minus first, on a scale that is `span` wide.

    Bonett and Price's adjusted interval of rates (2012: one more pair that gains and one that loses, so it has width at 0
    too), at the effective number of pairs: the design effect of the cluster sums, drawn towards `PRIOR_ICC` as for single
    rates, and Student's quantile. The two pairs added differ by as much as those that do differ (a root mean square), drawn
    towards `span` where few do: from three rows nobody knows how large a difference can be. With rates this is `span` itself.
    """
    delta = second - first
    if delta.size == 0:
        return Estimate(float("nan"), -span, span, 0, 0)
    sums, sizes = by_cluster(delta, clusters)
    n, m, centre = delta.size, sums.size, float(delta.mean())
    if m < 2:
        return Estimate(centre, -span, span, n, m)
    square, changed = float((delta**2).mean()), float((np.abs(delta) > 1e-12).sum())
    weight = changed / (changed + PRIOR_EVENTS)
    added = (square * n / changed) ** weight * span ** (2 * (1 - weight)) if changed else span**2
    independent = (square - centre**2) / n
    assumed = 1 + (float((sizes**2).sum()) / n - 1) * PRIOR_ICC
    measured = assumed
    if independent > 1e-15 * span**2:
        measured = m / (m - 1) * float(((sums - centre * sizes) ** 2).sum()) / n**2 / independent
    deff = max(weight * measured + (1 - weight) * assumed, 1.0)
    size = n / deff + 2
    middle = centre * (n / deff) / size
    spread = (square * n / deff + 2 * added) / size - middle**2
    half = float(stats.t.ppf((1 + level) / 2, m - 1)) * (spread / size) ** 0.5
    return Estimate(centre, max(middle - half, -span), min(middle + half, span), n, m, deff)


def sign_flip(sums: Floats) -> float:
    """Two-sided p value that independent differences with these sums are symmetric about 0.

    Exact for whole numbers (the distribution of ±|s_1| ± … by convolution) and for up to 20 sums (all sign flips);
    otherwise `DRAWS` random flips from a fixed seed, the observed one counted in. Sums of 0 change nothing.
    """
    sizes = np.abs(sums[np.abs(sums) > 1e-12])
    observed = abs(float(sums.sum()))
    if sizes.size == 0:
        return 1.0
    whole = np.rint(sizes)
    if np.abs(sizes - whole).max() < 1e-9:
        return _by_convolution(whole.astype(np.int64), round(observed))
    if sizes.size <= ENUMERATED:
        flipped: NDArray[Any] = np.zeros(1)
        for size in sizes:
            flipped = np.concatenate([flipped + size, flipped - size])
        return float(np.mean(np.abs(flipped) >= observed - 1e-9))
    flipped = _drawn(sizes)
    return float((np.sum(np.abs(flipped) >= observed - 1e-9) + 1) / (DRAWS + 1))


def _drawn(sizes: Floats) -> Floats:
    """`DRAWS` sums with random signs, drawn in blocks: all signs of ten thousand clusters at once would take gigabytes."""
    rng = np.random.default_rng(0)
    # Whole words of the generator, four draws each: so the blocks draw what one call would.
    block = max(DRAWN_AT_ONCE // sizes.size // 4 * 4, 4)
    rows = [min(block, DRAWS - done) for done in range(0, DRAWS, block)]
    return np.concatenate([(rng.integers(0, 2, (n, sizes.size), dtype=np.int8) * 2.0 - 1) @ sizes for n in rows])


def _by_convolution(sizes: NDArray[np.int64], observed: int) -> float:
    reach = int(sizes.sum())
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for size in sizes:
        moved = np.zeros_like(chance)
        moved[size:] += chance[: chance.size - size] / 2
        moved[: chance.size - size] += chance[size:] / 2
        chance = moved
    far = np.abs(np.arange(-reach, reach + 1)) >= observed
    return min(float(chance[far].sum()), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the given order; NaN stays NaN and is no member of the family."""
    adjusted = np.full(len(p_values), np.nan)
    known = [n for n, p in enumerate(p_values) if not np.isnan(p)]
    highest = 0.0
    for rank, n in enumerate(sorted(known, key=lambda n: p_values[n])):
        highest = max(highest, min(1.0, p_values[n] * (len(known) - rank)))
        adjusted[n] = highest
    return [float(p) for p in adjusted]


def compare(first: Verdicts, second: Verdicts) -> list[Difference]:
    """Every measure, and the safe turns among the first eight, over the dialogues that both runs hold."""
    common = np.intersect1d(first.ids, second.ids)
    a, b = (run.where(_places(run.ids, common)) for run in (first, second))
    found = [_measure(a, b, measure) for measure in MEASURES.values()]
    found.append(_safe_turns(a, b))
    return corrected(found)


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """The family with Holm's p values; one that does not reach 0.05 takes the word "better" back."""
    values = holm([d.p for d in found])
    return [
        replace(d, holm=value, better=d.better if value < 1 - LEVEL else "")
        for d, value in zip(found, values, strict=True)
    ]


def _places(ids: Labels, wanted: Labels) -> NDArray[np.int64]:
    order = np.argsort(ids)
    return np.asarray(order[np.searchsorted(ids[order], wanted)], dtype=np.int64)


def _measure(a: Verdicts, b: Verdicts, measure: Measure) -> Difference:
    one, two = units(a, measure), units(b, measure)
    both = np.isfinite(one.value) & np.isfinite(two.value)
    x, y, clusters = one.value[both], two.value[both], one.cluster[both]
    if measure.rate:
        estimate = paired_rate(x, y, clusters)
    else:
        estimate = paired_mean(x, y, clusters, measure.top - measure.bottom)
    p = sign_flip(by_cluster(y - x, clusters)[0]) if x.size else float("nan")
    means = (float(x.mean()), float(y.mean())) if x.size else (float("nan"),) * 2
    left_out = int((~both).sum())
    better = _better(estimate, measure.more_is_better)
    return Difference(measure.name, measure.label, *means, estimate, left_out, p, better=better)


def _safe_turns(a: Verdicts, b: Verdicts) -> Difference:
    """Difference of the restricted means, by a jackknife over clusters of both curves together.

    Over the dialogues decided in both runs: verdicts that only one run lacks, on its breaches say, would change its curve alone.
    """
    both = decided(a.harmlessness, a.planned) & decided(b.harmlessness, b.planned)
    left_out, a, b = int((~both).sum()), a.where(both), b.where(both)
    curves = [cluster_counts(*observe(run.harmlessness, run.planned), a.cluster, HORIZON) for run in (a, b)]
    one, two = (float(restricted(n.sum(0), d.sum(0))) for n, d in curves)
    m, centre, top = curves[0][0].shape[0], two - one, float(HORIZON)
    estimate, p = Estimate(centre, -top, top, len(a), m), float("nan")
    if np.isfinite(centre) and m > 1:
        without = [restricted(n.sum(0) - n, d.sum(0) - d) for n, d in curves]
        error = jackknife(without[1] - without[0])
        if error > 1e-12:
            half = float(stats.t.ppf((1 + LEVEL) / 2, m - 1)) * error
            estimate = Estimate(centre, max(centre - half, -top), min(centre + half, top), len(a), m)
            p = float(2 * stats.t.sf(abs(centre) / error, m - 1))
    label = f"Safe turns of the first {HORIZON}"
    return Difference("safe_turns", label, one, two, estimate, left_out, p, better=_better(estimate, True))


def _better(estimate: Estimate, more_is_better: bool) -> str:
    if estimate.low <= 0 <= estimate.high or np.isnan(estimate.value):
        return ""
    return "second" if (estimate.value > 0) is more_is_better else "first"


def over_seeds(by_seed: Sequence[Sequence[Difference]]) -> list[Difference]:
    """Per-seed differences, each from `compare`, as one sample of seeds: t interval and exact sign-flip test.

    With n seeds no p value can be below 2 / 2^n. A measure that some seed has no value of is left unknown.
    """
    found = []
    for row in zip(*by_seed, strict=True):
        values = np.array([d.difference.value for d in row])
        n, centre = values.size, float(values.mean())
        estimate, p = Estimate(centre, -np.inf, np.inf, n, n), float("nan")
        if np.isfinite(centre):
            p = sign_flip(values)
            if n > 1:
                half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / n**0.5)
                estimate = Estimate(centre, centre - half, centre + half, n, n)
        measure = MEASURES.get(row[0].measure)
        better = _better(estimate, measure.more_is_better if measure else True)
        means = (float(np.mean([d.first for d in row])), float(np.mean([d.second for d in row])))
        left_out = sum(d.left_out for d in row)
        found.append(Difference(row[0].measure, row[0].label, *means, estimate, left_out, p, better=better))
    return corrected(found)
