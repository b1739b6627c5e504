"""What the runs say: paired differences over training seeds, with the multiplicity that was written down before.

The unit is the seed. Arms of a seed share base and SFT student, rows, bench and the tutor's random numbers, so differences are
taken seed by seed: a t interval, and the exact sign-flip test (`bench.compare.sign_flip`), whose p value cannot be below 2/2^n.
Only seeds that have both arms count, and how many those are stands beside every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from verl_steer.bench.compare import holm, sign_flip
from verl_steer.bench.intervals import LEVEL
from verl_steer.bench.survival import HORIZON, product_limit
from verl_steer.stages.plan import ADDED_ARMS, ARMS, FIRST_ROUND_SEEDS, constants
from verl_steer.stages.result import Result, ResultError, Risk

Read = Callable[[Result], float | None]


def standardised(result: Result, kind: str = "") -> np.ndarray:
    """Survival averaged over strata that share kind and planned length, turn by turn: of the dialogues planned to reach turn t, how many are safe after it.

    The strata's tables stand in a result, every turn of them judged; `bench.survival.standardised` does the same from dialogues.

    Args:
        result: Of a run.
        kind: "benign" or "harmful"; "": both.

    Returns:
        (turns,) float64 in [0, 1], as long as the longest stratum.
    """
    tables = [
        t for name, t in result.survival.items() if name.startswith(f"{kind}:" if kind else ("benign:", "harmful:"))
    ]
    turns = max((len(t.at_risk) for t in tables), default=0)
    safe, planned = np.zeros(turns), np.zeros(turns)
    for table in tables:
        curve = survival_of(table)
        planned[: len(curve)] += table.at_risk[0]
        safe[: len(curve)] += table.at_risk[0] * np.array(curve)
    return safe / planned


@dataclass(frozen=True)
class Contrast:
    """Second arm minus first.

    Attributes:
        first: Arm.
        second: Arm.
        outcome: Key of `OUTCOMES`.
        goal: The least difference hoped for, or None.
    """

    first: str
    second: str
    outcome: str
    goal: float | None = None


#: outcome -> (label, how it is read, whether it is a rate that is told in points of a hundred)
OUTCOMES: dict[str, tuple[str, Read, bool]] = {
    "joint": ("joint pass, harmful", lambda r: r.by_kind["harmful"].get("joint"), True),
    "benign_joint": ("joint pass, benign", lambda r: r.by_kind["benign"].get("joint"), True),
    "twin_accuracy": ("twin accuracy", lambda r: r.measures.get("twin_accuracy"), True),
    "strict_twins": ("twin accuracy, strict", lambda r: r.tutor.get("twin_accuracy"), True),
    "over_refusal": ("over-refusal (benign)", lambda r: r.measures.get("over_refusal"), True),
    "safe_turns": ("safe turns of the first 8", lambda r: r.safe_turns, False),
    "safe_turns_alike": ("safe turns of the first 8, standardised", lambda r: _standardised_turns(r), False),
    "gap": ("tutor minus oracle", lambda r: r.tutor.get("gap"), False),
    "oracle_harmful": ("turn reward, harmful", lambda r: r.tutor.get("harmful"), False),
    "oracle_benign": ("turn reward, benign", lambda r: r.tutor.get("benign"), False),
    "tutor": ("the tutor's turn reward", lambda r: r.tutor.get("tutor"), False),
}
ORDER = (
    Contrast("base", "sft", "joint", 0.10),
    Contrast("sft", "full", "joint", 0.15),
    Contrast("base", "sft", "twin_accuracy", 0.0),
    Contrast("sft", "full", "twin_accuracy", 0.0),
)
SURVIVAL = (Contrast("base", "sft", "safe_turns", 0.0), Contrast("sft", "full", "safe_turns", 0.0))
STANDARDISED = (Contrast("base", "sft", "safe_turns_alike"), Contrast("sft", "full", "safe_turns_alike"))
#: The pre-registered family: Holm over these four, always four.
FAMILY = tuple(Contrast(arm, "full", "joint") for arm in ("no_bootstrap", "single_turn", "plain_mean", "yoked"))
OTHERS = (
    *(
        Contrast(arm, "full", "joint")
        for arm in ("sft_twice", "running_mean", "plain_mean_kl", "script", "final_credit", "steer_turn", "reference")
    ),
    # It differs from that arm by its data alone: no dialogue anywhere.
    Contrast("single_turn_base", "no_bootstrap", "joint"),
)
BENIGN_MARGIN = -0.05
#: Points: a wider interval of an ablation says too little.
HALF_WIDTH = 6.0


@dataclass(frozen=True)
class Found:
    """A contrast over the seeds that have both arms.

    Attributes:
        contrast: Which.
        seeds: Those seeds.
        value: Mean difference; NaN without a seed.
        low: Lower end of the 95 % t interval; -inf with fewer than two seeds.
        high: Upper end; inf likewise.
        lower_bound: One-sided 95 % lower bound.
        p: Exact two-sided sign-flip p; NaN without a seed.
        holm: Corrected, for members of a family; NaN else.
    """

    contrast: Contrast
    seeds: tuple[int, ...]
    value: float
    low: float
    high: float
    lower_bound: float
    p: float
    holm: float = float("nan")

    @property
    def half_width(self) -> float:
        """Of the 95 % t interval; inf with fewer than two seeds."""
        return (self.high - self.low) / 2

    @property
    def narrow(self) -> bool:
        """Whether the interval is so narrow that no difference seen says something."""
        return 100 * self.half_width <= HALF_WIDTH


def start_of(arm: str) -> str:
    """The arm whose student an arm's training begins with; "" for the base student, which is not trained here."""
    if arm == "base":
        return ""
    return "base" if arm == "sft" else ARMS[arm].start


class Runs:
    """The results of some seeds, by arm.

    Args:
        results: As read; others than of these seeds are left aside, constant policies are kept.
        seeds: Which seeds count.

    Raises:
        ResultError: Two results are not of one experiment.
    """

    def __init__(self, results: Iterable[Result], seeds: Sequence[int]) -> None:
        kept = [r for r in results if r.seed is None or r.seed in seeds]
        self.seeds = tuple(seeds)
        self.constants = {r.arm: r for r in kept if r.seed is None}
        # The round that was stopped knew nothing of the arms that came later: it does not lack them.
        unasked = set(ADDED_ARMS) - {r.arm for r in kept} if set(seeds) == set(FIRST_ROUND_SEEDS) else set()
        self.by_arm: dict[str, dict[int, Result]] = {name: {} for name in ARMS if name not in unasked}
        for result in kept:
            if result.seed is not None:
                if result.arm not in self.by_arm:
                    raise ResultError(f"{result.name}: there is no arm {result.arm!r}")
                self.by_arm[result.arm][result.seed] = result
        _one_experiment(kept)

    @property
    def missing(self) -> dict[str, list[int]]:
        """Arm -> the seeds without a result, arms without any gap left out."""
        gaps = {name: [s for s in self.seeds if s not in found] for name, found in self.by_arm.items()}
        return {name: seeds for name, seeds in gaps.items() if seeds}

    @property
    def missing_constants(self) -> list[str]:
        """The constant policies without a result."""
        return [name for name in constants() if name not in self.constants]

    @property
    def began(self) -> dict[str, bool | None]:
        """Trained run -> whether it began with the very weights of its seed's base or SFT result; None if they do not say.

        Another machine's arithmetic may make another student of the same seed: then a pair of arms is not quite one.
        """
        found: dict[str, bool | None] = {}
        for arm, results in self.by_arm.items():
            shared = start_of(arm)
            for seed, result in results.items() if arm != "base" else ():
                of = self.by_arm[shared].get(seed)
                said = bool(result.start and of is not None and of.student)
                found[result.name] = of.student == result.start if said and of is not None else None
        return found

    def values(self, arm: str, outcome: str) -> dict[int, float]:
        """The outcome by seed, where it is known."""
        read = OUTCOMES[outcome][1]
        found = {seed: read(result) for seed, result in sorted(self.by_arm[arm].items())}
        return {seed: value for seed, value in found.items() if value is not None}

    def contrast(self, contrast: Contrast) -> Found:
        """Differences of the seeds that have both arms."""
        one, two = (self.values(arm, contrast.outcome) for arm in (contrast.first, contrast.second))
        seeds = tuple(seed for seed in one if seed in two)
        return over_seeds(contrast, seeds, np.array([two[s] - one[s] for s in seeds], dtype=np.float64))

    def family(self, contrasts: Sequence[Contrast]) -> list[Found]:
        """Contrasts with Holm's correction over all of them: one that is not there yet counts as p = 1."""
        found = [self.contrast(c) for c in contrasts]
        corrected = holm([1.0 if np.isnan(f.p) else f.p for f in found])
        return [f if np.isnan(f.p) else replace(f, holm=p) for f, p in zip(found, corrected, strict=True)]

    def pooled(self, arm: str, group: str) -> Risk | None:
        """Survival counts of a group, summed over the seeds."""
        tables = [result.survival[group] for result in self.by_arm[arm].values() if group in result.survival]
        if not tables:
            return None
        length = max(len(t.at_risk) for t in tables)

        def total(column: str) -> list[int]:
            return [sum(getattr(t, column)[n] for t in tables if n < len(t.at_risk)) for n in range(length)]

        return Risk(at_risk=total("at_risk"), failed=total("failed"))


def over_seeds(contrast: Contrast, seeds: tuple[int, ...], values: np.ndarray) -> Found:
    """Mean difference, intervals and p value of per-seed differences."""
    n = values.size
    if not n:
        return Found(contrast, (), float("nan"), -np.inf, np.inf, -np.inf, float("nan"))
    centre, low, high, bound = float(values.mean()), -np.inf, np.inf, -np.inf
    if n > 1:
        error = float(values.std(ddof=1) / n**0.5)
        reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
        low, high = centre - reach, centre + reach
        bound = centre - float(stats.t.ppf(LEVEL, n - 1)) * error
    return Found(contrast, seeds, centre, low, high, bound, sign_flip(values))


def mean_interval(values: Mapping[int, float]) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % t interval; infinite with fewer than two, NaN without any."""
    found = over_seeds(Contrast("", "", ""), tuple(values), np.array(list(values.values()), dtype=np.float64))
    return found.value, found.low, found.high


def flip_shares(runs: Runs, arm: str, name: str) -> dict[int, float]:
    """Seed -> share of right verdicts that an intervention turned, where anything was right."""
    found = {seed: result.flips[name] for seed, result in sorted(runs.by_arm[arm].items()) if name in result.flips}
    return {seed: turned.flipped / turned.right for seed, turned in found.items() if turned.right}


def _standardised_turns(result: Result) -> float | None:
    curve = standardised(result)
    return float(curve[:HORIZON].sum()) if curve.size else None


def survival_of(risk: Risk) -> list[float]:
    """Ŝ(1), Ŝ(2), … of a table; NaN where nobody is at risk."""
    curve = product_limit(np.array(risk.at_risk, dtype=np.float64), np.array(risk.failed, dtype=np.float64))
    return [float(value) for value in curve]


def hacked(runs: Runs) -> bool | None:
    """Whether stage III raised the tutor's score and not the oracle's, or surely more than it; None without both arms."""
    tutor, gap = (runs.contrast(Contrast("sft", "full", name)) for name in ("tutor", "gap"))
    oracle = [runs.contrast(Contrast("sft", "full", f"oracle_{kind}")) for kind in ("harmful", "benign")]
    if not tutor.seeds or not all(f.seeds for f in oracle):
        return None
    return gap.low > 0 or (tutor.value > 0 and sum(f.value for f in oracle) <= 0)


def _one_experiment(results: Sequence[Result]) -> None:
    """Everything that is compared must be of one world, one bench and one set of sizes."""
    first: dict[str, Result] = {}
    for result in results:
        shared: dict[str, Any] = {"world_hash": result.world_hash, "bench_sha256": result.bench_sha256}
        if result.seed is not None:
            shared |= {"sizes": result.sizes, f"config_hash of {result.arm}": result.config_hash}
        for name, value in shared.items():
            before = first.setdefault(name, result)
            field = name.partition(" ")[0]
            if getattr(before, field) != value:
                raise ResultError(
                    f"{before.name} and {result.name} are not of one experiment: {field} is {getattr(before, field)} and {value}"
                )
