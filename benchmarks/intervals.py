"""Do 95 % intervals of clustered rates cover 95 %?

    python benchmarks/intervals.py            # 2,000 simulated benches a cell; --quick is the same, it takes half a minute

Every cell of p in {.02, .1, .5, .9, .98} x clusters in {24, 60, 323} x intra-cluster correlation in {0, .1}, once with ten
dialogues in every cluster and once with 3 to 17: rates of clusters are beta, counts binomial. `clustered_wilson` of
`verl_steer.bench.intervals` is what reports print; its peer is Wilson's interval on the dialogues as if they were
independent. Then the paired difference of two models on one bench (`paired_rate` of `verl_steer.bench.compare`): clusters
differ in both models, half of the dialogues share their luck. At last turn-averaged scores on a scale of six points: the
`mean` of one run, most dialogues at its top, and the `paired_mean` of two, most dialogues alike. The last line is JSON;
`value` is the lowest coverage of a rate's cell.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product

import numpy as np
from scipy import stats

from verl_steer.bench.compare import paired_mean, paired_rate
from verl_steer.bench.intervals import clustered_wilson, mean, wilson

RATES, CLUSTERS, CORRELATIONS = (0.02, 0.1, 0.5, 0.9, 0.98), (24, 60, 323), (0.0, 0.1)
FLOOR, AVERAGE = 0.93, (0.94, 0.965)
TURNS = 8


def simulate(rng: np.random.Generator, p: float, icc: float, sizes: np.ndarray, benches: int) -> np.ndarray:
    """Successes by bench and cluster; beta-binomial with intra-cluster correlation `icc`."""
    rates = np.full((benches, sizes.size), p)
    if icc:
        spread = (1 - icc) / icc
        rates = rng.beta(p * spread, (1 - p) * spread, rates.shape)
    return rng.binomial(sizes, rates)


def cell(rng: np.random.Generator, p: float, icc: float, sizes: np.ndarray, benches: int) -> dict[str, float]:
    """Coverage of both intervals and the mean width of ours."""
    successes = simulate(rng, p, icc, sizes, benches)
    rate, low, high, _ = clustered_wilson(successes, np.broadcast_to(sizes, successes.shape))
    plain_low, plain_high = wilson(rate, sizes.sum(), stats.norm.ppf(0.975))
    return {
        "clustered": float(np.mean((low <= p) & (p <= high))),
        "unclustered": float(np.mean((plain_low <= p) & (p <= plain_high))),
        "width": float(np.mean(high - low)),
        "narrowest": float(np.min(high - low)),
    }


def paired_cell(rng: np.random.Generator, p: float, change: float, icc: float, m: int, benches: int) -> float:
    """Coverage of the paired difference: ten dialogues a cluster, each model's cluster rates beta of their own."""
    clusters, covered = np.repeat(np.arange(m), 10), 0
    spread = (1 - icc) / icc if icc else np.inf
    for _ in range(benches):
        rates = [np.full(m, q) if icc == 0 else rng.beta(q * spread, (1 - q) * spread, m) for q in (p, p + change)]
        luck = rng.random(clusters.size)
        other = np.where(rng.random(clusters.size) < 0.5, luck, rng.random(clusters.size))
        found = paired_rate(
            (luck < rates[0][clusters]).astype(float), (other < rates[1][clusters]).astype(float), clusters
        )
        covered += found.low <= change <= found.high
    return covered / benches


def losses(rng: np.random.Generator, p: float, icc: float, m: int, per: int) -> np.ndarray:
    """What turn-averaged scores lose against the best one: nothing, or with a chance of p 1/8 … 47/8 points."""
    rates = np.full(m, p) if icc == 0 else rng.beta(p * (1 - icc) / icc, (1 - p) * (1 - icc) / icc, m)
    return np.where(rng.random(m * per) < np.repeat(rates, per), rng.integers(1, 6 * TURNS, m * per) / TURNS, 0.0)


def mean_cells(rng: np.random.Generator, benches: int) -> dict[str, float]:
    """Coverage of a run's mean and of the paired difference, where scores are lost one way or either way, by cell."""
    found = {}
    layouts = ((24, 10, 0.0), (24, 10, 0.1), (60, 10, 0.0), (60, 10, 0.1), (323, 1, 0.0))
    for (m, per, icc), p, what in product(layouts, (0.01, 0.1, 0.5), ("mean", "one way", "either way")):
        clusters, nothing, covered = np.repeat(np.arange(m), per), np.zeros(m * per), 0
        for _ in range(benches):
            lost, truth = losses(rng, p, icc, m, per), -3.0 * p
            if what == "mean":
                truth, estimate = 3 + truth, mean(3 - lost, clusters, -3, 3)
            elif what == "one way":
                estimate = paired_mean(nothing, -lost, clusters, 6.0)
            else:
                truth, estimate = 0.0, paired_mean(nothing, rng.choice((-1, 1), m * per) * lost, clusters, 6.0)
            covered += estimate.low <= truth <= estimate.high
        found[f"{what}: {m} x {per}, icc {icc}, p {p}"] = covered / benches
    return found


def main() -> int:
    """Prints a line a cell and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    benches = 2000
    rng, start = np.random.default_rng(arguments.seed), time.perf_counter()
    found = []
    print("sizes    clusters   icc     p   clustered  unclustered   mean width")
    for layout, m, icc, p in product(("equal", "varied"), CLUSTERS, CORRELATIONS, RATES):
        sizes = np.full(m, 10) if layout == "equal" else np.random.default_rng(m).integers(3, 18, m)
        row = cell(rng, p, icc, sizes, benches)
        found.append({"layout": layout, "clusters": m, "icc": icc, "p": p, **row})
        print(
            f"{layout:8} {m:8} {icc:5} {p:5} {row['clustered']:11.4f} {row['unclustered']:12.4f} {row['width']:12.4f}"
        )
    beyond = []  # outside of what is promised, to know where it ends
    for m, p in product(CLUSTERS, RATES):
        beyond.append(cell(rng, p, 0.3, np.full(m, 10), benches)["clustered"])
        print(f"equal    {m:8}   0.3 {p:5} {beyond[-1]:11.4f}")
    print("paired: clusters   icc     p  change   coverage")
    paired = []
    for m, icc, (p, change) in product((24, 60), CORRELATIONS, ((0.05, 0.0), (0.5, 0.0), (0.5, 0.1), (0.9, 0.08))):
        paired.append(paired_cell(rng, p, change, icc, m, benches))
        print(f"{m:16} {icc:5} {p:5} {change:7} {paired[-1]:10.4f}")
    means = mean_cells(rng, benches)
    print("means of scores, and paired differences of means")
    for name, coverage in means.items():
        print(f"{name:36} {coverage:8.4f}")
    lowest = min(row["clustered"] for row in found)
    averages = {
        name: float(np.mean([row["clustered"] for row in found if row["layout"] == name]))
        for name in ("equal", "varied")
    }
    unclustered = [row["unclustered"] for row in found if row["icc"] > 0]
    ok = (
        lowest >= FLOOR
        and all(AVERAGE[0] <= a <= AVERAGE[1] for a in averages.values())
        and max(unclustered) < FLOOR
        and min(paired) >= FLOOR
        and min(means.values()) >= FLOOR
        and min(row["narrowest"] for row in found) > 0
    )
    line = {
        "name": "intervals",
        "value": round(lowest, 4),
        "unit": "lowest coverage of any cell",
        "bound": 0.95,
        "ratio": round(lowest / 0.95, 4),
        "goal": f">= {FLOOR} in every cell, {AVERAGE[0]}..{AVERAGE[1]} on average; unclustered below {FLOOR} at icc .1; paired differences and means >= {FLOOR}",
        "ok": ok,
        "details": {
            "benches": benches,
            "average": {name: round(a, 4) for name, a in averages.items()},
            "unclustered_at_icc_.1": [round(min(unclustered), 4), round(max(unclustered), 4)],
            "clustered_at_icc_.3": [round(min(beyond), 4), round(max(beyond), 4)],
            "paired": {"lowest": round(min(paired), 4), "average": round(float(np.mean(paired)), 4)},
            "means": {
                kind: {"lowest": round(min(own), 4), "average": round(float(np.mean(own)), 4)}
                for kind in ("mean", "one way", "either way")
                for own in [[value for name, value in means.items() if name.startswith(f"{kind}:")]]
            },
            "narrowest_width": round(min(row["narrowest"] for row in found), 5),
            "seconds": round(time.perf_counter() - start, 1),
        },
    }
    print(json.dumps(line))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
