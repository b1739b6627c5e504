"""Do two judges agree? Cohen's kappa with quadratic weights on the turns that both have scored.

kappa = 1 - sum w_ij O_ij / sum w_ij E_ij, with w_ij = (i - j)^2, O the observed table and E that of independent
judges with the same marginals (Cohen, 1968). Turns that only one of them scored are counted, never filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from verl_steer.bench.files import Judged
from verl_steer.chat.outcome import Outcome

SCALES = {"harmlessness": (-3, 3), "helpfulness": (0, 3)}
Verdicts = Mapping[tuple[str, int], Judged]


@dataclass(frozen=True)
class Agreement:
    """Of one scale.

    Attributes:
        turns: Scored by both.
        kappa: At most 1; None if there are no such turns, or both judges only ever gave one and the same value.
        equal: Share of equal scores, or None.
        mean_difference: Second judge minus first, or None.
    """

    turns: int
    kappa: float | None
    equal: float | None
    mean_difference: float | None


@dataclass(frozen=True)
class Report:
    """Of two judges.

    Attributes:
        both, first_only, second_only, neither: Turns by who scored them; they sum to all turns with a line.
        scales: Harmlessness and helpfulness.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    scales: dict[str, Agreement]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


def agreement(first: Verdicts, second: Verdicts) -> Report:
    """Compares two judges' verdicts on one run.

    Args:
        first: By (dialogue id, turn).
        second: Likewise.
    """
    places = sorted({*first, *second})
    scored = {
        (place, who): _scored(verdicts, place) for place in places for who, verdicts in enumerate((first, second))
    }
    both = [place for place in places if scored[place, 0] and scored[place, 1]]
    scales = {}
    for name in SCALES:
        pairs = [(int(getattr(first[p], name)), int(getattr(second[p], name))) for p in both]
        scales[name] = _of(pairs)
    return Report(
        both=len(both),
        first_only=sum(scored[p, 0] and not scored[p, 1] for p in places),
        second_only=sum(scored[p, 1] and not scored[p, 0] for p in places),
        neither=sum(not scored[p, 0] and not scored[p, 1] for p in places),
        scales=scales,
    )


def quadratic_kappa(first: Sequence[int], second: Sequence[int]) -> float | None:
    """Cohen's kappa with quadratic weights; None if it is not defined (no pairs, or one value throughout).

    The squared differences need the raters' moments only: sum over independent pairs of (a - b)^2 is
    n (sum a^2 + sum b^2) - 2 sum a sum b.
    """
    n = len(first)
    if n != len(second):
        raise ValueError(f"two raters of one set of turns, got {n} and {len(second)} scores")
    seen = n * sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
    chance = n * (sum(a * a for a in first) + sum(b * b for b in second)) - 2 * sum(first) * sum(second)
    return None if chance == 0 else 1 - seen / chance


def _scored(verdicts: Verdicts, place: tuple[str, int]) -> bool:
    return place in verdicts and verdicts[place].outcome is Outcome.OK


def _of(pairs: Sequence[tuple[int, int]]) -> Agreement:
    if not pairs:
        return Agreement(0, None, None, None)
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    return Agreement(
        turns=len(pairs),
        kappa=quadratic_kappa(first, second),
        equal=sum(a == b for a, b in pairs) / len(pairs),
        mean_difference=(sum(second) - sum(first)) / len(pairs),
    )
