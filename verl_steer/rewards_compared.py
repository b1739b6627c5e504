"""Would other reward settings have taught the same? Answered from the dialogues of a run, without training again.

GRPO learns from differences within a group: from A_i = R_i - mean of the group. Two settings whose A_i agree teach nearly the
same, whatever their returns are. Their *scale* does not turn a gradient, but it weighs it against the KL loss and against a
bound on the gradient's norm: who compares settings of unlike scale compares that, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from verl_steer.credit import ROUNDING, Array, group_advantages
from verl_steer.records import Record, RecordError


@dataclass(frozen=True)
class Compared:
    """Advantages under the settings of the run and under others.

    Attributes:
        rollouts: Those that neither setting masks.
        informative: Share of them that either setting gives an advantage other than 0; the rest is about these.
        correlation: Pearson's, of the two advantages; NaN where one setting gives none.
        same_sign: Share with the same sign; one that is 0 under a single setting disagrees.
        scale: Root mean square advantage of the other settings over that of the run's; NaN if the run had none.
    """

    rollouts: int
    informative: float
    correlation: float
    same_sign: float
    scale: float

    def to_json(self) -> dict[str, float | None]:
        """Plain data; NaN, which strict readers of JSON refuse, is null."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def compare(stored: Iterable[Record], other: Iterable[Record]) -> Compared:
    """Compares two scorings of the same rollouts.

    Args:
        stored: Records of a run.
        other: The same in the same order, from `records.rescore`.

    Raises:
        RecordError: They are not the same rollouts, e.g. because a step was written in between.
    """
    first, second = ([_Scored.of(record) for record in records] for records in (stored, other))
    if [s.rollout for s in first] != [s.rollout for s in second]:
        raise RecordError(
            "the two scorings are not of the same rollouts in the same order; has the run gone on meanwhile?"
        )
    valid = np.array([not (a.masked or b.masked) for a, b in zip(first, second, strict=True)], dtype=bool)
    groups = [s.rollout[:2] for s in first]
    returns = (np.array([s.value for s in scored], dtype=np.float64) for scored in (first, second))
    one, two = (group_advantages(values, groups, valid)[valid] for values in returns)
    told = (np.abs(one) > ROUNDING) | (np.abs(two) > ROUNDING)
    if not told.any():
        return Compared(int(valid.sum()), 0.0, float("nan"), float("nan"), float("nan"))
    a, b = one[told], two[told]
    alike = float(np.corrcoef(a, b)[0, 1]) if a.any() and b.any() else float("nan")
    sizes = [float(np.sqrt((x**2).mean())) for x in (a, b)]
    return Compared(
        rollouts=int(valid.sum()),
        informative=float(told.mean()),
        correlation=alike,
        same_sign=float((_sign(a) == _sign(b)).mean()),
        scale=sizes[1] / sizes[0] if sizes[0] else float("nan"),
    )


@dataclass(frozen=True)
class _Scored:
    """What is needed of a record, which holds a whole dialogue."""

    rollout: tuple[object, object, object]
    value: float
    masked: bool

    @classmethod
    def of(cls, record: Record) -> _Scored:
        value = record.get("return")
        return cls(
            (record.get("step"), record.get("uid"), record.get("session")),
            0.0 if value is None else float(value),
            value is None or bool(record.get("masked")),
        )


def _sign(values: Array) -> Array:
    return np.where(np.abs(values) > ROUNDING, np.sign(values), 0.0)
