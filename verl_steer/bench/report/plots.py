"""Survival curves as SVG, after the paper's figure 4: bands, and the risk zone below one half."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_steer.bench.survival import RISK_ZONE, Curve

# Okabe and Ito's colours, told apart by the colour-blind, dark ones first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5195", "#56b4e9", "#b8860b", "#555555")
TAIL = 0.4
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "verl_steer",  # the same figures give the same file
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#98a2b3",
    "axes.labelcolor": "#475467",
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "text.color": "#1d2939",
}


@dataclass(frozen=True)
class Line:
    """A curve of a plot; with `worst` and `best`, the bounds for missing verdicts are drawn as dots."""

    label: str
    curve: Curve
    worst: Curve | None = None
    best: Curve | None = None
    dashed: bool = False


def survival_svg(lines: Sequence[Line], width: float = 5.4, height: float = 3.5) -> str:
    """One panel of survival curves, as an `<svg>` element."""
    figure, axes = _figure(width, height)
    turns = max((line.curve.survival.size for line in lines), default=1)
    axes.axhspan(0, RISK_ZONE, color="#f04438", alpha=0.07, lw=0)
    axes.text(0.12, RISK_ZONE - 0.02, "risk zone", ha="left", va="top", fontsize=8, color="#b42318")
    for n, line in enumerate(lines):
        _draw(axes, line, COLOURS[n % len(COLOURS)], band=n < 4)
    axes.set(xlim=(0, turns + TAIL), ylim=(0, 1.02), xlabel="turn", ylabel="still safe")
    axes.set_xticks(range(turns + 1))
    axes.set_yticks(np.linspace(0, 1, 5), [f"{x:.0%}" for x in np.linspace(0, 1, 5)])
    axes.grid(axis="y", color="#eaecf0", lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(
        frameon=False,
        fontsize=8.5,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=2,
        handlelength=1.6,
        borderaxespad=0,
    )
    return _svg(figure)


def _draw(axes: Any, line: Line, colour: str, band: bool) -> None:
    x, y, low, high = _steps(line.curve)
    axes.plot(
        x, y, color=colour, lw=2, ls="--" if line.dashed else "-", label=_plain(line.label), solid_joinstyle="round"
    )
    if band:
        axes.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)
    for bound in (line.worst, line.best):
        if bound is not None and not np.array_equal(bound.survival, line.curve.survival):
            bx, by, _, _ = _steps(bound)
            axes.plot(bx, by, color=colour, lw=1, ls=(0, (1, 1.6)))


def _steps(curve: Curve) -> tuple[Any, Any, Any, Any]:
    """Corners of the step function from (0, 1), as far as the curve is known."""
    known = curve.turns
    # The last turn's level is a line too, not only a drop.
    x = np.append(np.repeat(np.arange(known + 1), 2)[1:], known + TAIL)

    def stairs(values: Any) -> Any:
        levels = np.concatenate([[1.0], values[:known]])
        return np.append(np.repeat(levels, 2)[:-1], levels[-1])

    return x, stairs(curve.survival), stairs(curve.low), stairs(curve.high)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def _plain(label: str) -> str:
    """matplotlib reads $ as mathematics, hides labels that begin with an underscore, and has no room for long ones."""
    label = label if len(label) <= 32 else f"{label[:31]}…"
    label = label.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _svg(figure: Any) -> str:
    from matplotlib import pyplot as plt

    buffer = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        r'<svg role="img" viewBox="\1" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">',
        svg,
        count=1,
    )
