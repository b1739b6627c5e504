"""The generated section of docs/gpu.md: replaced whole, the rest of the page stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl_steer.whole import write_text

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
ROWS = (
    ("step, s", "step_s"),
    ("rollout (tutor included), s", "rollout_s"),
    ("tutor in the longest dialogue, s", "tutor_longest_dialogue_s"),
    ("log-probabilities, s", "log_prob_s"),
    ("update, s", "update_s"),
    ("weights to the rollout, s", "weights_s"),
    ("tokens/s", "tokens_per_s"),
    ("trainer's peak memory, GiB", "trainer_peak_gib"),
    ("card's peak memory, GiB", "card_peak_gib"),
    ("largest probability difference", "probs_diff_max"),
    ("mean probability difference", "probs_diff_mean"),
)


def table(found: dict[str, Any]) -> str:
    """The figures of one invocation as markdown."""
    runs, sizes = found["runs"], found["sizes"]
    lines = [
        f"Measured on: {found['device']}. Geometry {found['geometry']}, random weights; {sizes['seeds']} seeds x "
        f"{sizes['siblings']} siblings x {sizes['turns']} turns of at most {sizes['reply']} tokens, a tutor of "
        f"{sizes['tutor_s']} s a call; means over steps 2 to {sizes['steps']}.",
        "",
        "| | "
        + " | ".join(
            f"{name} ({run['rollout']})" if name == "single-turn" else f"steer_grpo ({name})"
            for name, run in runs.items()
        )
        + " |",
        "|---" * (len(runs) + 1) + "|",
    ]
    for label, key in ROWS:
        cells = ["-" if run.get(key) is None else f"{run[key]:.4g}" for run in runs.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page_for(named: Path | None, tiny: bool, device: str) -> Path | None:
    """Where figures go: the page that was named; else docs/gpu.md, but for real sizes on a GPU alone.

    Args:
        named: By the command line.
        tiny: The geometry is tiny.
        device: Where it ran, "cpu" or the card's name.
    """
    return named if named or tiny or device == "cpu" else PAGE


def write_figures(page: Path, found: dict[str, Any]) -> None:
    """Puts the figures between the two marks of `page`.

    Raises:
        ValueError: The page does not hold both marks, once each and in order.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page}: needs the lines {BEGIN} and {END}, once each and in this order")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(page, f"{before}{BEGIN}\n{table(found)}\n{END}{after}")
