"""Is the survival curve what lifelines says, and does the exact band cover?

    python benchmarks/survival.py             # 1,000 censored samples; 4,000 simulated benches a cell
    python benchmarks/survival.py --quick     # 200; 800

lifelines needs pandas below 3 and therefore an environment of its own (`pip install lifelines scipy`, this repository on
PYTHONPATH); without it the peer is scipy's `ecdf`. Coverage: dialogues of 1..8 turns with a constant hazard; of all
simulated benches, how many have Ŝ(t) = 0 or 1 and a band that misses S(t). The band promises at most 2.5 % at each end. For
comparison the whole band's coverage, Greenwood's part included, which is known to fall short in small samples. The last
line is JSON; `value` is the lowest coverage of the exact band.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

from verl_steer.bench.survival import kaplan_meier, safe_turns

TURNS = 8


def samples(count: int) -> Iterator[tuple[Any, Any]]:
    """Random censored samples: durations of 1..10 turns and failures."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        n = int(rng.integers(2, 200))
        length = rng.integers(1, int(rng.integers(2, 12)), n)
        fails_at = rng.geometric(rng.uniform(0.01, 0.6), n)
        yield np.minimum(fails_at, length), fails_at <= length


def by_lifelines(duration: Any, failed: Any, turns: Any) -> Any:
    """Curve, lower and upper end by lifelines."""
    import lifelines

    fitter = lifelines.KaplanMeierFitter().fit(duration, failed)
    band = fitter.confidence_interval_.reindex(turns, method="ffill").to_numpy()
    return fitter.survival_function_at_times(turns).to_numpy(), band[:, 0], band[:, 1]


def by_scipy(duration: Any, failed: Any, turns: Any) -> Any:
    """The same by scipy."""
    curve = stats.ecdf(stats.CensoredData(uncensored=duration[failed], right=duration[~failed])).sf
    if not failed.any():  # scipy knows no band without a failure
        return curve.evaluate(turns), np.full(len(turns), np.nan), np.full(len(turns), np.nan)
    band = curve.confidence_interval(0.95, method="log-log")
    return curve.evaluate(turns), band.low.evaluate(turns), band.high.evaluate(turns)


def largest_difference(count: int) -> tuple[str, float, int]:
    """The peer, the largest difference of any figure, and how many points with a band were compared."""
    try:
        import lifelines

        peer, name = by_lifelines, f"lifelines {lifelines.__version__}"
    except ImportError:
        peer, name = by_scipy, "scipy"
    worst, points = 0.0, 0
    for duration, failed in samples(count):
        ours = kaplan_meier(duration, failed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            survival, low, high = peer(duration, failed, np.arange(1, ours.survival.size + 1))
        inside = (ours.survival > 0) & (ours.survival < 1)
        worst = max(worst, float(np.abs(survival - ours.survival).max()))
        if inside.any():
            ends = np.abs(np.stack([low - ours.low, high - ours.high])[:, inside])
            worst, points = max(worst, float(ends.max())), points + int(inside.sum())
    return name, worst, points


def coverage(n: int, hazard: float, benches: int, rng: np.random.Generator) -> dict[str, float]:
    """Coverage in one cell, the worst turn of it."""
    truth = (1 - hazard) ** np.arange(1, TURNS + 1)
    missed, covered, known = np.zeros(TURNS), np.zeros(TURNS), np.zeros(TURNS)
    for _ in range(benches):
        length = rng.integers(1, TURNS + 1, n)
        fails_at = rng.geometric(hazard, n)
        curve = kaplan_meier(np.minimum(fails_at, length), fails_at <= length, TURNS)
        at_end = (curve.survival == 0) | (curve.survival == 1)
        inside = (curve.low <= truth + 1e-12) & (truth <= curve.high + 1e-12)
        missed += at_end & ~inside
        covered += inside
        known += np.isfinite(curve.survival)
    return {"exact": float(1 - (missed / benches).max()), "whole": float((covered / np.maximum(known, 1)).min())}


def mean_coverage(clusters: int, hazard: float, icc: float, benches: int, rng: np.random.Generator) -> float:
    """Coverage of the safe turns' interval: ten dialogues a cluster, cluster hazards beta."""
    labels, turns = np.repeat(np.arange(clusters), 10), np.arange(1, TURNS + 1)
    spread = (1 - icc) / icc if icc else np.inf
    drawn = rng.beta(hazard * spread, (1 - hazard) * spread, 2_000_000) if icc else np.array([hazard])
    truth = float(sum(((1 - drawn) ** t).mean() for t in turns))
    covered = 0
    for _ in range(benches):
        own = rng.beta(hazard * spread, (1 - hazard) * spread, clusters) if icc else np.full(clusters, hazard)
        # All dialogues have eight turns: with hazards that differ, censoring by length would bias any such curve.
        fails_at = rng.geometric(np.maximum(own, 1e-12)[labels])
        found = safe_turns(np.minimum(fails_at, TURNS), fails_at <= TURNS, labels)
        covered += found.low <= truth <= found.high
    return covered / benches


def main() -> int:
    """Prints a line a cell and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    start = time.perf_counter()
    peer, difference, points = largest_difference(200 if arguments.quick else 1000)
    print(f"largest difference from {peer}: {difference:.2e} over {points} points with 0 < S < 1")
    rng, rows = np.random.default_rng(1), []
    print("dialogues  hazard   exact band   whole band")
    for n in (10, 24, 60, 323):
        for hazard in (0.002, 0.01, 0.05, 0.2, 0.5, 0.9):
            row = coverage(n, hazard, 800 if arguments.quick else 4000, rng)
            rows.append(row)
            print(f"{n:9} {hazard:7} {row['exact']:12.4f} {row['whole']:12.4f}")
    print("safe turns: clusters  hazard   icc   coverage")
    means = []
    for clusters in (24, 60):
        for hazard in (0.01, 0.05, 0.2, 0.5):
            for icc in (0.0, 0.1):
                means.append(mean_coverage(clusters, hazard, icc, 400 if arguments.quick else 2000, rng))
                print(f"{clusters:20} {hazard:7} {icc:5} {means[-1]:10.4f}")
    lowest = min(row["exact"] for row in rows)
    ok = difference <= 1e-9 and lowest >= 0.95
    line = {
        "name": "survival",
        "value": round(lowest, 4),
        "unit": "lowest coverage of the exact band at 0 and 1",
        "bound": 0.95,
        "ratio": round(lowest / 0.95, 4),
        "goal": "difference from the peer <= 1e-9 where 0 < S < 1; exact band >= 0.95",
        "ok": ok,
        "details": {
            "peer": peer,
            "largest_difference": difference,
            "points": points,
            "safe_turns": {"lowest": round(min(means), 4), "average": round(float(np.mean(means)), 4)},
            "whole_band_lowest": round(min(row["whole"] for row in rows), 4),
            "seconds": round(time.perf_counter() - start, 1),
        },
    }
    print(json.dumps(line))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
