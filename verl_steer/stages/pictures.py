"""The two pictures of the evidence: survival by stage, and learning curves."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from verl_steer.stages.contrasts import Runs, standardised
from verl_steer.stages.plan import ARMS
from verl_steer.stages.result import Result
from verl_steer.whole import replacing

STAGES = {"base": "tab:gray", "sft": "tab:orange", "full": "tab:red"}


def survival(runs: Runs, out: Path) -> Path | None:
    """Standardised survival of harmful and of benign dialogues: the mean over seeds, a thin line a seed; None without any run."""
    arms = [arm for arm in STAGES if runs.by_arm[arm]]
    if not arms:
        return None
    figure, panels = _axes(2)
    for axes, kind in zip(panels, ("harmful", "benign"), strict=True):
        for arm in arms:
            curves = [standardised(result, kind) for result in runs.by_arm[arm].values()]
            for curve in curves:
                _curve(axes, curve, STAGES[arm], None)
            label = f"{ARMS[arm].label} ({len(curves)} seeds)"
            _curve(axes, np.mean(curves, axis=0), STAGES[arm], label)
        axes.set(title=f"{kind} dialogues", xlabel="turn t", ylim=(0, 1.03))
        axes.set_ylabel("share of those that reach t, safe after it")
    panels[0].legend(title="thick: mean, thin: each seed")
    return _save(figure, out)


def learning(runs: Runs, out: Path) -> Path | None:
    """Change of the turn reward on scripted held-out dialogues by step, mean over seeds; None without any curve.

    Arms on single-turn data are left out: they are validated on single questions, too, so their curves are of something else.
    """
    arms, fewer = drawn(runs)
    if not arms:
        return None
    figure, panels = _axes(2)
    for axes, name in zip(panels, ("harmful", "benign"), strict=True):
        axes.axhline(0.0, color="0.5", linewidth=0.8)
        for number, arm in enumerate(arms):
            colour = f"C{number % 10}"
            by_step: dict[int, list[float]] = defaultdict(list)
            for result in runs.by_arm[arm].values():
                known = _since_start(result, name)
                for step, value in known:
                    by_step[step].append(value)
                if arm == "full":
                    axes.plot(*zip(*known, strict=True), color=colour, alpha=0.3, linewidth=0.8)
            points = {step: sum(v) / len(v) for step, v in sorted(by_step.items())}
            axes.plot(
                list(points),
                list(points.values()),
                marker="o",
                markersize=3,
                linewidth=2.2 if arm == "full" else 1.1,
                linestyle="-" if number < 10 else "--",
                color=colour,
                label=f"{ARMS[arm].label} ({len(runs.by_arm[arm])} seeds)",
            )
        axes.set(title=f"{name} dialogues, scripted", xlabel="step", ylabel="turn reward (by the tutor), minus step 0")
    # One scale for both, or a thousandth of the benign ones would look like a tenth of the others.
    ends = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    title = "means over seeds; thin: each seed of the full method"
    if fewer:
        title += f"\nnot drawn, since they lack seeds: {', '.join(fewer)}"
    panels[1].legend(fontsize=7, title=title, title_fontsize=7)
    return _save(figure, out)


def drawn(runs: Runs) -> tuple[list[str], list[str]]:
    """The arms whose curves can be laid over each other, and those that lack seeds of `full`: seeds differ more than arms do."""
    curved = {
        arm: set(found)
        for arm, found in runs.by_arm.items()
        if ARMS[arm].rows != "single" and any(result.curve for result in found.values())
    }
    asked = curved.get("full", set())
    return [a for a, seeds in curved.items() if seeds >= asked], [
        a for a, seeds in curved.items() if not seeds >= asked
    ]


def _since_start(result: Result, name: str) -> list[tuple[int, float]]:
    known = [(point.step, value) for point in result.curve if (value := getattr(point, name)) is not None]
    return [(step, value - known[0][1]) for step, value in known]


def _curve(axes: Any, curve: np.ndarray, colour: str, label: str | None) -> None:
    """Points, not steps: who reaches a turn changes with it, so the share may rise."""
    alpha, width, marker = (1.0, 2.0, "o") if label else (0.25, 1.0, "")
    axes.plot(
        range(1, len(curve) + 1),
        curve,
        marker=marker,
        linestyle="-",
        color=colour,
        label=label,
        alpha=alpha,
        linewidth=width,
    )


def _axes(count: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, count, figsize=(6 * count, 4.2), constrained_layout=True)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, panels


def _save(figure: Any, out: Path) -> Path:
    from matplotlib import pyplot as plt

    try:
        with replacing(out) as temporary:
            figure.savefig(temporary, dpi=110, format="png")
    finally:
        plt.close(figure)
    return out
