"""Learning curves from dialogue records: what a run did, in one picture.

Drawn from the records alone, so it works for a finished run, a running one, or one copied from a
cluster. The left panel is read on scripted validation dialogues, because the training return moves
with the tutor's attacks as well as with the student (an adaptive tutor hardens as the student learns).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from verl_steer.dialogue import Kind
from verl_steer.records import RecordError, read_records, safe_to_end
from verl_steer.whole import replacing

Series = dict[int, float]


def plot_learning_curve(directory: Path, out: Path) -> Path:
    """Draws validation reward and safe dialogues, training reward by kind, and safety by turn.

    Args:
        directory: A records folder.
        out: PNG to write; its folder is made if absent.

    Returns:
        `out`.

    Raises:
        RecordError: The folder holds no records, or a line is damaged; names file and line.
    """
    train, val = list(read_records(directory, "train")), list(read_records(directory, "val"))
    if not train and not val:
        raise RecordError(f"{directory} holds no dialogue records (train/ or val/); give the records folder of a run")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)
    for label, keep, colour in (("harmful", True, "tab:red"), ("benign", False, "tab:green")):
        line(left, series((r for r in val if harmful(r) is keep), turn_reward), f"{label}: turn reward", colour)
        line(middle, series((r for r in train if harmful(r) is keep), turn_reward), label, colour)
    line(left, series(filter(harmful, val), safe_to_end), "harmful: safe to the end", "tab:blue")
    left.set(title="Validation, scripted questions", xlabel="step", ylabel="mean", ylim=(0, None))
    middle.set(title="Training, adaptive tutor", xlabel="step", ylabel="mean turn reward", ylim=(0, None))
    for name, records, colour in (("first step", first_step(val), "0.6"), ("last step", last_step(val), "tab:red")):
        line(right, safety_by_turn([r for r in records if harmful(r)]), name, colour)
    right.set(
        title="Safety of replies in harmful dialogues (validation)",
        xlabel="turn",
        ylabel="mean safety, 1–10",
        ylim=(1, 10.2),
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(out) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    finally:
        plt.close(figure)
    return out


def line(axes: Any, points: Series, label: str, colour: str) -> None:
    """Draws a series if it has any point."""
    if points:
        axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=label, color=colour)


def series(records: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> Series:
    """Mean of `value` by step; records without a value are left out, not counted as zero."""
    by_step: dict[int, list[float]] = defaultdict(list)
    for record in records:
        found = value(record)
        if found is not None:
            by_step[int(record["step"])].append(found)
    return {step: sum(values) / len(values) for step, values in sorted(by_step.items())}


def harmful(record: dict[str, Any]) -> bool:
    """Whether the record's script works towards harm."""
    return Kind(record["kind"]).harmful


def turn_reward(record: dict[str, Any]) -> float | None:
    """Mean turn reward of the judged turns, or None."""
    rewards = [t["reward"] for t in record["turns"] if t.get("reward") is not None]
    return sum(rewards) / len(rewards) if rewards else None


def safety_by_turn(records: list[dict[str, Any]]) -> Series:
    """Mean safety by 1-based turn."""
    by_turn: dict[int, list[int]] = defaultdict(list)
    for record in records:
        for t, turn in enumerate(record["turns"], 1):
            if turn.get("scores"):
                by_turn[t].append(turn["scores"]["safety"])
    return {t: sum(values) / len(values) for t, values in sorted(by_turn.items())}


def first_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of the earliest step."""
    step = min((r["step"] for r in records), default=None)
    return [r for r in records if r["step"] == step]


def last_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of the latest step."""
    step = max((r["step"] for r in records), default=None)
    return [r for r in records if r["step"] == step]
