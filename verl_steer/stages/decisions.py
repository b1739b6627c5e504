"""The pre-registered hypotheses, decided by the rules that were written down: nothing here is a matter of reading a table."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

from verl_steer.stages.contrasts import (
    BENIGN_MARGIN,
    FAMILY,
    HALF_WIDTH,
    ORDER,
    OUTCOMES,
    SURVIVAL,
    Contrast,
    Runs,
    flip_shares,
    mean_interval,
)
from verl_steer.stages.plan import FIRST_ROUND_SEEDS
from verl_steer.stages.tables import difference, reached

#: Arm -> where its joint pass on harmful dialogues should lie, on the mean over seeds.
GATES = {"base": (0.0, 0.30), "sft": (0.30, 0.60)}


def gate(runs: Runs, arm: str) -> tuple[float, bool | None]:
    """Mean joint pass on harmful dialogues, and whether it lies in the arm's gate; None without a run."""
    low, high = GATES[arm]
    centre = mean_interval(runs.values(arm, "joint"))[0]
    return centre, None if math.isnan(centre) else low <= centre <= high


def above_constants(runs: Runs, outcome: str) -> tuple[int, int, float]:
    """(seeds in which `full` is above every constant policy, of how many, the best constant); (0, 0, NaN) without either."""
    constants = [value for c in runs.constants.values() if (value := OUTCOMES[outcome][1](c)) is not None]
    full = runs.values("full", outcome)
    if not constants or not full:
        return 0, 0, float("nan")
    best = max(constants)
    return sum(value > best for value in full.values()), len(full), best


def hypotheses(runs: Runs) -> str:
    """A line for each hypothesis of docs/prereg.md."""
    lines = [
        ("1 (order)", ("base", "sft", "full"), _order),
        ("2 (benign dialogues)", ("sft", "full"), _benign),
        ("3 (ablations)", ("full", *(c.first for c in FAMILY)), _ablations),
        ("4 (picture and history)", ("full",), _reliance),
        ("5 (survival)", ("base", "sft", "full"), _survival),
    ]
    said = []
    stopped = set(runs.seeds) == set(FIRST_ROUND_SEEDS)
    for name, arms, decide in lines:
        lacking = sorted({seed for arm in arms for seed in runs.seeds if seed not in runs.by_arm[arm]})
        state = "**not confirmed**, the round was stopped" if stopped else "open"
        verdict = f"{state}, {len(lacking)} of {len(runs.seeds)} seeds lack a run" if lacking else decide(runs)
        said.append(f"- Hypothesis {name}: {verdict}.")
    return "\n".join(said)


def _all(missed: Sequence[str]) -> str:
    return f"**not confirmed**: {'; '.join(missed)}" if missed else "**confirmed**"


def _order(runs: Runs) -> str:
    if absent := runs.missing_constants:
        return f"open, without a result of {', '.join(absent)}"
    missed = [_named(c) for c in ORDER if not reached(runs.contrast(c))]
    missed += [f"{arm} is outside its gate" for arm in GATES if not gate(runs, arm)[1]]
    for outcome in ("joint", "twin_accuracy"):
        above, of, _ = above_constants(runs, outcome)
        if not of or above < of:
            missed.append(f"above every constant policy in {above} of {of} seeds ({OUTCOMES[outcome][0]})")
    return _all(missed)


def _benign(runs: Runs) -> str:
    bound = runs.contrast(Contrast("sft", "full", "benign_joint")).lower_bound
    return _all([] if bound >= BENIGN_MARGIN else [f"the bound is {100 * bound:+.1f} points"])


def _ablations(runs: Runs) -> str:
    found = runs.family(FAMILY)
    apart = [f for f in found if f.holm < 0.05]
    alike = [f for f in found if f not in apart and f.narrow]
    unknown = [f for f in found if f not in apart and f not in alike]
    parts = [
        (apart, "`full` differs (Holm) from"),
        (alike, f"no difference is seen, by an interval of at most ±{HALF_WIDTH:.0f} points, from"),
        (unknown, f"undecided, the interval is wider than ±{HALF_WIDTH:.0f} points:"),
    ]
    said = [
        f"{text} {', '.join(f'{f.contrast.first} ({difference((f.value, f.low, f.high), f.contrast.outcome)})' for f in some)}"
        for some, text in parts
        if some
    ]
    return "; ".join(said)


def _reliance(runs: Runs) -> str:
    causal = importlib.import_module("verl_steer.microworld.causal")
    shares = {
        label: (name, mean_interval(flip_shares(runs, "full", name))[0]) for name, label in causal.INTERVENTIONS.items()
    }
    return _all([f"{label}: {100 * v:.1f} %" for label, (name, v) in shares.items() if not causal.holds(name, v)])


def _survival(runs: Runs) -> str:
    return _all([_named(c) for c in SURVIVAL if not reached(runs.contrast(c))])


def _named(contrast: Contrast) -> str:
    return f"{contrast.second} − {contrast.first} ({OUTCOMES[contrast.outcome][0]})"
