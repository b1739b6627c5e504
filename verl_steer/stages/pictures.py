"""The two pictures of the evidence: survival by stage, and learning curves."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from verl_steer.stages.contrasts import Runs, survival_of
from verl_steer.stages.plan import ARMS

STAGES = {"base": "tab:gray", "sft": "tab:orange", "full": "tab:red"}


def survival(runs: Runs, out: Path) -> Path | None:
    """Ŝ(t) of harmful and of benign dialogues, pooled over seeds, a thin line a seed; None without any run."""
    arms = [arm for arm in STAGES if runs.by_arm[arm]]
    if not arms:
        return None
    figure, panels = _axes(2)
    for axes, group in zip(panels, ("harmful", "benign"), strict=True):
        for arm in arms:
            for result in runs.by_arm[arm].values():
                _steps(axes, survival_of(result.survival[group]), STAGES[arm], None, 0.25)
            pooled = runs.pooled(arm, group)
            if pooled is not None:
                n = pooled.at_risk[0] if pooled.at_risk else 0
                _steps(axes, survival_of(pooled), STAGES[arm], f"{ARMS[arm].label} (n = {n})", 1.0)
        axes.axhline(0.5, color="0.7", linewidth=0.8, linestyle=":")
        axes.set(title=f"{group} dialogues", xlabel="turn", ylabel="share without a failed turn", ylim=(0, 1.03))
        axes.legend()
    return _save(figure, out)


def learning(runs: Runs, out: Path) -> Path | None:
    """Turn rewards on scripted held-out dialogues by step, mean over seeds; None without any curve."""
    arms = [arm for arm, found in runs.by_arm.items() if any(r.curve for r in found.values())]
    if not arms:
        return None
    figure, panels = _axes(2)
    for axes, name in zip(panels, ("harmful", "benign"), strict=True):
        for number, arm in enumerate(arms):
            colour = f"C{number % 10}"
            by_step: dict[int, list[float]] = defaultdict(list)
            for result in runs.by_arm[arm].values():
                known = [(p.step, value) for p in result.curve if (value := getattr(p, name)) is not None]
                for step, value in known:
                    by_step[step].append(value)
                if arm == "full":
                    axes.plot(*zip(*known, strict=True), color=colour, alpha=0.3, linewidth=0.8)
            points = {step: sum(v) / len(v) for step, v in sorted(by_step.items())}
            wide = 2.2 if arm == "full" else 1.1
            label = f"{ARMS[arm].label} ({len(runs.by_arm[arm])} seeds)"
            axes.plot(
                list(points),
                list(points.values()),
                marker="o",
                markersize=3,
                linewidth=wide,
                color=colour,
                label=label,
            )
        axes.set(title=f"{name} dialogues, scripted", xlabel="step", ylabel="mean turn reward (by the tutor)")
    # One scale for both, or a thousandth of the benign ones would look like a tenth of the others.
    low = min(axes.get_ylim()[0] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, 1.0)
    panels[1].legend(fontsize=7)
    return _save(figure, out)


def _steps(axes: Any, curve: list[float], colour: str, label: str | None, alpha: float) -> None:
    values = [1.0, *curve]
    axes.step(
        range(len(values)), values, where="post", color=colour, label=label, alpha=alpha, linewidth=2 if label else 1
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

    temporary = out.with_name(f".{out.name}.tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    temporary.replace(out)
    return out
