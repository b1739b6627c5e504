"""Credit: from returns and turn rewards to advantages (pure; no verl, no tokens).

Two estimators. `group_advantages` is the paper's: a rollout's return minus its group's mean.
`turn_advantages` gives each turn its own: the return-to-go minus a baseline that never contains the
rollout itself, shrunk towards what earlier batches saw in the same situation. A baseline may depend on
anything before the turn's reply, and on nothing after it; both forms keep to that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bucket = tuple[Hashable, ...]

#: An advantage below it is rounding.
ROUNDING = 1e-9
#: Returns are sums of float32 values that lie on different tokens: equal ones come out so far apart, relatively.
TIE = 1e-5
MINIMUM_BINS = 5  # resolution at which the running minimum enters a bucket


def tied(returns: Sequence[float] | Array) -> bool:
    """Whether a group's returns teach nothing: fewer than two, or equal but for rounding."""
    if len(returns) < 2:
        return True
    low, high = float(min(returns)), float(max(returns))
    return high - low <= TIE * max(1.0, abs(low), abs(high))


def group_advantages(
    returns: Array, groups: Sequence[Hashable], valid: NDArray[np.bool_], std: bool = False, eps: float = 1e-6
) -> Array:
    """A_i = R_i - mean of the group's valid returns; invalid rollouts and lone ones get 0.

    With `std`, so do the rollouts of a tied group: rounding divided by rounding would be an advantage of ordinary size.

    Args:
        returns: (n,) returns R_i; entries of invalid rollouts are ignored.
        groups: n group ids, in any order.
        valid: (n,) whether a rollout counts.
        std: Divide by the group's standard deviation (verl's GRPO; the paper does not).
        eps: Added to the standard deviation.

    Returns:
        (n,) float64.
    """
    advantages = np.zeros(len(returns))
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        if valid[i]:
            members[group].append(i)
    for rows in members.values():
        if len(rows) < 2 or (std and tied(returns[rows])):
            continue  # nothing to compare with
        centred = returns[rows] - returns[rows].mean()
        advantages[rows] = centred / (returns[rows].std(ddof=1) + eps) if std else centred
    return advantages


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0


@dataclass
class TurnBaseline:
    """Mean return-to-go of *earlier* batches by situation: turn, running minimum, turns left, kind.

    Falls back from the full situation to (turn, turns left) to the turn, and answers None where even that
    has never been seen.
    """

    _means: dict[Bucket, _Mean] = field(default_factory=dict)

    def value(self, bucket: Bucket) -> float | None:
        """The mean seen in `bucket` or its nearest coarser form."""
        for form in _coarser(bucket):
            mean = self._means.get(form)
            if mean is not None and mean.count:
                return mean.total / mean.count
        return None

    def update(
        self,
        rewards: Sequence[Sequence[float]],
        signals: Sequence[Sequence[float]],
        groups: Sequence[Hashable],
        kinds: Sequence[str],
        planned: Sequence[int],
        valid: NDArray[np.bool_],
    ) -> None:
        """Adds a batch; call it after the batch's advantages were computed, never before."""
        del groups
        for i, row in enumerate(rewards):
            if valid[i]:
                for t, value in enumerate(returns_to_go(row)):
                    for form in _coarser(situation(t, signals[i], planned[i], kinds[i])):
                        mean = self._means.setdefault(form, _Mean())
                        mean.total += float(value)
                        mean.count += 1


def returns_to_go(rewards: Sequence[float]) -> Array:
    """G_t = sum of the rewards from turn t on."""
    return np.cumsum(np.asarray(rewards, dtype=np.float64)[::-1])[::-1]


def situation(t: int, signal: Sequence[float], planned: int, kind: str) -> Bucket:
    """The bucket of turn t (0-based): only what was known before its reply."""
    before = min(signal[:t], default=float("inf"))
    level = MINIMUM_BINS if t == 0 else int(np.clip(np.floor(before * MINIMUM_BINS), -1, MINIMUM_BINS))
    return (t, planned - t, level, kind)


def turn_advantages(
    rewards: Sequence[Sequence[float]],
    signals: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    kinds: Sequence[str],
    planned: Sequence[int],
    valid: NDArray[np.bool_],
    past: TurnBaseline,
    prior_strength: float = 2.0,
) -> list[Array]:
    """A_{i,t} = G_{i,t} - b_{i,t}, G the return-to-go.

    b = lambda * mean of the siblings' G_t (alive at t, valid, never i itself) + (1 - lambda) * b_past,
    lambda = n / (n + prior_strength) with n siblings. A rollout that is alone at turn t gets b_past,
    not 0: with 0 the late turns of survivors are biased. Where the past knows nothing, the siblings
    stand alone; where there is nobody either, the baseline is 0.

    Args:
        rewards: n rows of placed turn rewards, ragged.
        signals: n rows that the running minimum is taken of, aligned with `rewards`; any will do that is known before the turn, the baseline is the better
            the more they tell.
        groups: n group ids.
        kinds: n script kinds.
        planned: n planned lengths in turns.
        valid: (n,) whether a rollout counts; others get zeros and are nobody's sibling.
        past: What earlier batches saw.
        prior_strength: Weight of the past, in siblings.

    Returns:
        n float64 arrays, one value a turn.
    """
    to_go = [returns_to_go(row) for row in rewards]
    sums: dict[tuple[Hashable, int], _Mean] = defaultdict(_Mean)
    for i, row in enumerate(to_go):
        if valid[i]:
            for t, value in enumerate(row):
                sums[groups[i], t].total += float(value)
                sums[groups[i], t].count += 1
    advantages = []
    for i, row in enumerate(to_go):
        out = np.zeros(len(row))
        if valid[i]:
            for t, value in enumerate(row):
                group = sums[groups[i], t]
                prior = past.value(situation(t, signals[i], planned[i], kinds[i]))
                out[t] = value - _baseline(group.total - float(value), group.count - 1, prior, prior_strength)
        advantages.append(out)
    return advantages


def _baseline(sibling_total: float, n: int, prior: float | None, prior_strength: float) -> float:
    if n == 0:
        return 0.0 if prior is None else prior
    siblings = sibling_total / n
    if prior is None:
        return siblings
    share = n / (n + prior_strength)
    return share * siblings + (1 - share) * prior


def _coarser(bucket: Bucket) -> tuple[Bucket, ...]:
    t, left, _, _ = bucket
    return bucket, (t, left), (t,)
