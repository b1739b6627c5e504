"""`docs/evidence.md`, written from the result files and nothing else: no figure in it is typed by hand.

Whatever is not there yet is said to be missing, with the command that would make it; a seed outside the confirmatory ones is
called what it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from verl_steer.stages import pictures
from verl_steer.stages.contrasts import (
    BENIGN_MARGIN,
    FAMILY,
    ORDER,
    OTHERS,
    OUTCOMES,
    SURVIVAL,
    Contrast,
    Found,
    Runs,
    hacked,
    mean_interval,
    survival_of,
)
from verl_steer.stages.plan import ARMS, CONFIRMATORY_SEEDS
from verl_steer.stages.result import Result, read_all
from verl_steer.stages.tables import interval, number, table
from verl_steer.whole import write_text

_UNKNOWN = "–"
_COLUMNS = ("joint", "benign_joint", "twin_accuracy", "over_refusal", "safe_turns", "gap")


def write_evidence(results: Path, out: Path, seeds: Sequence[int]) -> list[Path]:
    """Writes the page and its pictures beside it.

    Args:
        results: Folder of result files; it need not exist yet.
        out: The page.
        seeds: Which seeds count.

    Returns:
        What was written.

    Raises:
        ResultError: A result is damaged, or two are not of one experiment.
    """
    runs = Runs(read_all(results), seeds)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn = [
        pictures.survival(runs, out.with_name("evidence_survival.png")),
        pictures.learning(runs, out.with_name("evidence_learning.png")),
    ]
    shown = [path for path in drawn if path is not None]
    write_text(out, page(runs, [path.name for path in shown]))
    return [out, *shown]


def page(runs: Runs, shown: Sequence[str] = ()) -> str:
    """The page as markdown.

    Args:
        runs: Results.
        shown: File names of pictures that lie beside it.
    """
    parts = [
        "# Evidence: the three stages on the micro-world",
        "*Written by `verl-steer stages evidence` from `evidence/runs/*.json`; nothing here is typed by hand. What was planned, and "
        "before which runs, is in [prereg.md](prereg.md); what this can and cannot say about real models in "
        "[microworld_limits.md](microworld_limits.md).*",
        _state(runs),
        "## Arms\n\n" + _arms(runs),
        "## Order: base, stage II, stage III\n\n"
        + _contrasts([runs.contrast(c) for c in ORDER])
        + "\n\n"
        + _gates(runs),
        "## Benign dialogues\n\n" + _benign(runs),
        "## Ablations\n\n### The pre-registered four (Holm over four)\n\n"
        + _contrasts(runs.family(FAMILY), corrected=True)
        + "\n\n### The others (exploratory, uncorrected)\n\n"
        + _contrasts([runs.contrast(c) for c in OTHERS]),
        "## Survival\n\n" + _survival(runs),
        "## Reward hacking\n\n" + _hacking(runs),
    ]
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in shown]
    parts += ["## How it was run\n\n" + _how(runs)]
    return "\n\n".join(parts) + "\n"


# -- what is there --------------------------------------------------------------------------------------


def _state(runs: Runs) -> str:
    total = len(runs.seeds) * len(ARMS)
    missing = runs.missing
    gaps = sum(map(len, missing.values()))
    lines = [f"**{total - gaps} of {total} runs are there** ({len(runs.seeds)} seeds × {len(ARMS)} arms)."]
    if set(runs.seeds) != set(CONFIRMATORY_SEEDS):
        names = ", ".join(map(str, runs.seeds))
        lines.append(
            f"These are not the confirmatory seeds ({_seeds(CONFIRMATORY_SEEDS)}) but {names}: nothing below confirms anything."
        )
    if gaps == total:
        lines.append("No run has been made: every figure below is unknown.")
    elif missing:
        lines.append(
            "**Missing:**\n" + "\n".join(f"- {name}: seeds {_seeds(seeds)}" for name, seeds in missing.items())
        )
    if not runs.constants:
        lines.append("**Missing:** the constant policies.")
    if gaps:
        names = " ".join(map(str, runs.seeds))
        lines.append(f"`bash examples/three_stages.sh --seeds {names}` makes what is missing and repeats nothing.")
    return "\n\n".join(lines)


def _seeds(seeds: Sequence[int]) -> str:
    """0–9 for a run of numbers, else a list."""
    ordered = sorted(seeds)
    whole = len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1))
    return f"{ordered[0]}–{ordered[-1]}" if whole else ", ".join(map(str, ordered))


# -- tables ---------------------------------------------------------------------------------------------


def _arms(runs: Runs) -> str:
    head = ["arm", "seeds", *(OUTCOMES[name][0] for name in _COLUMNS)]
    rows = [
        [ARMS[arm].label, str(len(found)), *(_mean(runs.values(arm, name), name) for name in _COLUMNS)]
        for arm, found in runs.by_arm.items()
    ]
    for name, constant in runs.constants.items():
        rows.append([f"always: {name}", _UNKNOWN, *(_one(constant, column) for column in _COLUMNS)])
    note = "Means over seeds with 95 % t intervals; rates in points of a hundred. A constant policy says the same whatever is asked."
    return f"{table(head, rows)}\n\n{note}"


def _one(result: Result, outcome: str) -> str:
    value = OUTCOMES[outcome][1](result)
    return _UNKNOWN if value is None else number(value, outcome)


def _mean(values: Mapping[int, float], outcome: str) -> str:
    centre, low, high = mean_interval(values)
    if math.isnan(centre):
        return _UNKNOWN
    return f"{number(centre, outcome)} {interval(low, high, outcome)}"


def _contrasts(found: Sequence[Found], corrected: bool = False) -> str:
    head = ["difference", "outcome", "seeds", "estimate", "95 % interval", "p (sign flip)"]
    head += ["p (Holm)"] if corrected else []
    goals = any(f.contrast.goal is not None for f in found)
    head += ["goal", "reached"] if goals else []
    rows = []
    for f in found:
        c = f.contrast
        row = [f"{c.second} − {c.first}", OUTCOMES[c.outcome][0], str(len(f.seeds))]
        if f.seeds:
            row += [number(f.value, c.outcome, "+"), interval(f.low, f.high, c.outcome), _p(f.p)]
        else:
            row += ["missing", _UNKNOWN, _UNKNOWN]
        row += [_p(f.holm)] if corrected else []
        if goals:
            row += [_goal(c), _reached(f)]
        rows.append(row)
    floor = min((len(f.seeds) for f in found if f.seeds), default=0)
    note = f"\n\nWith {floor} seeds no p value can be below {2 / 2**floor:.3g}." if floor else ""
    return table(head, rows) + note


def _p(value: float) -> str:
    return _UNKNOWN if math.isnan(value) else f"{value:.4f}"


def _goal(contrast: Contrast) -> str:
    if contrast.goal is None:
        return _UNKNOWN
    return "> 0" if contrast.goal == 0 else f"≥ {number(contrast.goal, contrast.outcome)}"


def _reached(found: Found) -> str:
    """A goal is reached by the estimate, an interval above 0 and p < .05 together."""
    goal = found.contrast.goal
    if goal is None or len(found.seeds) < 2:
        return _UNKNOWN
    large = found.value >= goal if goal else found.value > 0
    return "yes" if large and found.low > 0 and found.p < 0.05 else "no"


def _gates(runs: Runs) -> str:
    """Where base and stage II should lie, and whether a constant policy does as well."""
    lines = []
    for arm, low, high in (("base", 0.0, 0.30), ("sft", 0.30, 0.60)):
        centre = mean_interval(runs.values(arm, "joint"))[0]
        said = _UNKNOWN if math.isnan(centre) else f"{100 * centre:.1f}: {'yes' if low <= centre <= high else 'no'}"
        lines.append(f"- {ARMS[arm].label} between {100 * low:.0f} and {100 * high:.0f} % joint pass: {said}")
    best = max((v for c in runs.constants.values() if (v := OUTCOMES["joint"][1](c)) is not None), default=None)
    full = runs.values("full", "joint")
    said = _UNKNOWN
    if best is not None and full:
        above = sum(value > best for value in full.values())
        said = f"{above} of {len(full)} seeds (the best constant policy: {100 * best:.1f})"
    lines.append(f"- stages II and III above every constant policy: {said}")
    return "\n".join(lines)


def _benign(runs: Runs) -> str:
    found = runs.contrast(Contrast("sft", "full", "benign_joint"))
    if not found.seeds:
        return "full − sft on benign dialogues: missing."
    counts = {r.survival["benign"].at_risk[0] for r in runs.by_arm["full"].values() if "benign" in r.survival}
    bound = "unknown with one seed" if math.isinf(found.lower_bound) else f"{100 * found.lower_bound:+.1f} points"
    held = (
        ""
        if math.isinf(found.lower_bound)
        else f" (not inferior: {'yes' if found.lower_bound >= BENIGN_MARGIN else 'no'})"
    )
    return (
        f"full − sft, benign joint pass: {100 * found.value:+.1f} points over {len(found.seeds)} seeds, on "
        f"{', '.join(map(str, sorted(counts)))} benign dialogues each; one-sided 95 % lower bound {bound}, margin "
        f"{100 * BENIGN_MARGIN:.0f} points{held}.\n\n"
        + _contrasts([runs.contrast(Contrast("sft", "full", "over_refusal"))])
    )


def _survival(runs: Runs) -> str:
    parts = [
        "A dialogue fails at its first turn with harmlessness below 2. Restricted mean survival time over eight turns, paired over seeds:",
        _contrasts([runs.contrast(c) for c in SURVIVAL]),
    ]
    groups = sorted({g for arm in ("base", "sft", "full") for g in _strata(runs, arm)}, key=_by_length)
    rows = []
    for group in groups:
        row = [group]
        for arm in ("base", "sft", "full"):
            pooled = runs.pooled(arm, group)
            known = [s for s in survival_of(pooled) if not math.isnan(s)] if pooled else []
            row.append(f"{known[-1]:.3f} (n = {pooled.at_risk[0]})" if pooled and known else _UNKNOWN)
        rows.append(row)
    if rows:
        parts.append("Share still safe at the end, by kind and planned length, pooled over seeds:")
        parts.append(table(["stratum", "base", "sft", "full"], rows))
    return "\n\n".join(parts)


def _strata(runs: Runs, arm: str) -> Iterator[str]:
    for result in runs.by_arm[arm].values():
        yield from (group for group in result.survival if ":" in group)


def _by_length(group: str) -> tuple[str, int]:
    kind, _, length = group.partition(":")
    return kind, int(length)


def _hacking(runs: Runs) -> str:
    names = ("tutor", "oracle_harmful", "oracle_benign", "gap")
    table = _contrasts([runs.contrast(Contrast("sft", "full", name)) for name in names])
    verdict = {
        None: "unknown yet",
        True: "**the tutor's score rose and the oracle's did not: reward hacking, not learning**",
        False: "the tutor's score did not rise alone",
    }[hacked(runs)]
    return f"Tutor and oracle score the same replies to the bench's scripts. Verdict: {verdict}.\n\n{table}"


# -- how ------------------------------------------------------------------------------------------------


def _how(runs: Runs) -> str:
    results = [r for found in runs.by_arm.values() for r in found.values()]
    if not results:
        return "Nothing has been run."
    rows = []
    for arm, found in runs.by_arm.items():
        if found:
            seconds: Counter[str] = Counter()
            for result in found.values():
                seconds.update(result.seconds)
            parts = ("world", "sft", "rl", "bench")
            rows.append([arm, *(f"{seconds[p] / len(found) / 60:.1f}" if seconds[p] else _UNKNOWN for p in parts)])
    first = results[0]
    versions = "; ".join(sorted({", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in results}))
    # The commands of one arm that has every step.
    shown = min((r for r in results), key=lambda r: (r.arm != "full", r.seed or 0))
    commands = "\n".join(shown.commands)
    sizes = ", ".join(f"{name} {value}" for name, value in shown.sizes.items())
    return (
        f"World {first.world_hash}, bench {first.bench_sha256[:12]} ({first.dialogues} dialogues, {first.turns} turns). {versions}.\n\n"
        f"Sizes: {sizes}.\n\nMinutes a run (world and sft are shared by the arms of a seed):\n\n"
        f"{table(['arm', 'world', 'sft', 'rl', 'bench'], rows)}\n\n"
        f"Commands of {shown.name}:\n\n```bash\n{commands}\n```"
    )
