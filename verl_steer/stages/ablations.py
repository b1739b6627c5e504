"""Part of the evidence page on the ablations: what differs, in which outcome, by which rule, and what the arms met in training."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from verl_steer.stages.contrasts import FAMILY, HALF_WIDTH, OTHERS, OUTCOMES, Contrast, Runs, mean_interval, start_of
from verl_steer.stages.met import Met
from verl_steer.stages.plan import ARMS
from verl_steer.stages.sizes import Sizes
from verl_steer.stages.tables import UNKNOWN, contrasts, difference, mean, table

_BESIDE = ("benign_joint", "twin_accuracy", "over_refusal")
_SILENT, _SPREAD = "groups without a signal", "spread of returns"
_BY_RULE = {
    "harmful": "Joint pass, harmful dialogues",
    "benign": "Joint pass, benign dialogues",
    "twin_accuracy": "Twin accuracy",
}


def ablations(runs: Runs) -> str:
    """Everything under "Ablations"."""
    others = [c for c in OTHERS if c.first in runs.by_arm]
    return "\n\n".join(
        (
            "### The pre-registered four (Holm over four)",
            contrasts(runs.family(FAMILY), corrected=True),
            "### The others (exploratory, uncorrected)",
            contrasts([runs.contrast(c) for c in others]),
            _precision(runs),
            "### What it costs elsewhere (exploratory)",
            _beside(runs),
            "### What the arms met in training",
            _met(runs),
        )
    )


def _precision(runs: Runs) -> str:
    """Whether an ablation's interval is narrow enough to say something."""
    asked = [c for c in (*FAMILY, *OTHERS) if c.first in runs.by_arm]
    found = [f for f in map(runs.contrast, asked) if len(f.seeds) > 1]
    said = [f"{f.contrast.first} {100 * f.half_width:.1f}{'' if f.narrow else ' (too wide)'}" for f in found]
    return f"Half-widths of the intervals in points, goal ≤ {HALF_WIDTH:.0f}: {', '.join(said) or 'unknown yet'}."


def _beside(runs: Runs) -> str:
    rows = []
    for contrast in (*FAMILY, *OTHERS):
        if contrast.first in runs.by_arm:
            asked = [Contrast(contrast.first, contrast.second, outcome) for outcome in _BESIDE]
            found = [runs.contrast(c) for c in asked]
            name = f"{contrast.second} − {contrast.first}"
            rows.append(
                [
                    name,
                    str(len(found[0].seeds)),
                    *(difference((f.value, f.low, f.high), f.contrast.outcome) for f in found),
                ]
            )
    return table(["difference", "seeds", *(OUTCOMES[outcome][0] for outcome in _BESIDE)], rows)


def _met(runs: Runs) -> str:
    """How arms differ in what they learned from, beside what their names say."""
    columns: dict[str, tuple[Callable[[Met], float | None], Callable[[float], str]]] = {
        "dialogues": (lambda m: m.rollouts, _count),
        "judged replies": (lambda m: m.replies, _count),
        "reply tokens": (lambda m: m.tokens, _count),
        _SILENT: (lambda m: m.silent, _share),
        _SPREAD: (lambda m: m.spread, lambda value: f"{value:.3f}"),
        "rewritten questions": (lambda m: m.rewritten, _share),
        "other than a sibling's": (lambda m: m.elsewhere, _share),
    }
    rows = []
    for arm, results in runs.by_arm.items():
        known = [r.met for r in results.values() if r.met is not None]
        if known:
            untold = _untold(arm)
            shown = [
                UNKNOWN if name in untold else _mean([read(m) for m in known], say)
                for name, (read, say) in columns.items()
            ]
            sizes = Sizes(**next(iter(results.values())).sizes)
            updates = f"{sizes.sft_steps if ARMS[arm].start == 'sft' else 0} + {sizes.rl_steps}"
            rows.append([arm, str(len(known)), updates, *shown])
    if not rows:
        return "Unknown: these results are older."
    return table(["arm", "seeds", "updates (II + III)", *columns], rows) + (
        "\n\nMeans over seeds, of Stage III's training. A group (five rollouts of one script) whose returns are all equal has no signal. The spread of returns "
        "within groups is how large advantages are: the KL loss weighs against it, so an arm with a smaller one is held more tightly, too. (Neither can be told of "
        "`steer_turn`, whose advantages are of turns and not of returns; nor the spread of `reference`, which divides by it.) Rewritten: share of "
        "the questions after the first that are not the planned ones, all that `script` can change. Other than a sibling's: share of them that the next rollout of "
        "the same script was not asked at that turn, all that `yoked` can change as long as students are alike. An arm from the base student (`no_bootstrap`, "
        "`single_turn_base`) has fewer updates, no demonstrations, and a KL loss that holds it to the base student."
    )


def _untold(arm: str) -> tuple[str, ...]:
    """Columns that say nothing of how an arm learns."""
    overrides = ARMS[arm].overrides or ()
    if "steer.reward.credit=turn" in overrides:
        return (_SILENT, _SPREAD)
    return (_SPREAD,) if "algorithm.norm_adv_by_std_in_grpo=true" in overrides else ()


def _mean(values: list[float | None], say: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return say(sum(known) / len(known)) if known else UNKNOWN


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


# -- by rule --------------------------------------------------------------------------------------------


def by_rule(runs: Runs) -> str:
    """Where an arm gains or loses: by the rule that a dialogue turns on, against `full` and against the student it began with."""
    names = importlib.import_module("verl_steer.microworld.rules").NAMES
    results = [r for found in runs.by_arm.values() for r in found.values()]
    rules = sorted({rule for result in results for rule in result.by_rule})
    if not rules:
        return "By rule: unknown, these results are older."
    parts = [
        f"{', '.join(f'{rule}: {names.get(rule, rule)}' for rule in rules)}. An expert without memory is right on R1 alone, "
        'and on R4 if it is told what "the other one" means (no training has dialogues of R4); one that sees no ring or eye on R3 alone; R2 needs both. Means '
        "over seeds with 95 % t intervals, exploratory. Levels are over an arm's own seeds, "
        "differences over the seeds that both have; an arm's start is the student that its training began with (base or Stage II)."
    ]
    for key, label in _BY_RULE.items():
        levels, apart = [], []
        for arm, found in runs.by_arm.items():
            own = [_values(runs, arm, rule, key) for rule in rules]
            if any(own):
                levels.append([arm, str(len(found)), *(mean(v, "joint") for v in own)])
                full = [_values(runs, "full", rule, key) if arm != "full" else {} for rule in rules]
                start = [_values(runs, start_of(arm), rule, key) for rule in rules]
                apart.append([arm, *map(_ahead, full, own), *map(_ahead, own, start)])
        head = [*(f"full − arm, {rule}" for rule in rules), *(f"arm − its start, {rule}" for rule in rules)]
        parts.append(f"{label}:\n\n{table(['arm', 'seeds', *rules], levels)}\n\n{table(['arm', *head], apart)}")
    return "\n\n".join(parts)


def _values(runs: Runs, arm: str, rule: str, key: str) -> dict[int, float]:
    found = {seed: r.by_rule.get(rule, {}).get(key) for seed, r in sorted(runs.by_arm.get(arm, {}).items())}
    return {seed: value for seed, value in found.items() if value is not None}


def _ahead(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    both = {seed: one[seed] - other[seed] for seed in one if seed in other}
    return difference(mean_interval(both), "joint") if both else UNKNOWN
