"""A data set card: what a split holds, where it comes from, and how it compares with the paper's table 1."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verl_steer.data.formats import read_any
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import AnyRow, Exchange
from verl_steer.data.validate import images_of, turns_of
from verl_steer.whole import replacing, write_text

# Table 1 of the paper: dialogues, turns, average turns.
PAPER = {
    "sft": ("STEER-SFT", 12934, "2-10", 6.35),
    "rl": ("STEER-RL", 2000, "2-10", 8.33),
    "bench": ("STEER-Bench", 3227, "2-10", 8.55),
}


@dataclass
class Figures:
    """Counts over one split; `hash` is over the rows' content, not over the file's bytes."""

    rows: int = 0
    images: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    subsets: Counter[str] = field(default_factory=Counter)
    hash: str = ""


def count(path: Path) -> tuple[str, Figures]:
    """Reads a split once and counts.

    Raises:
        DataError: A row cannot be read; `verl-steer data validate` names all of them.
    """
    name, rows = read_any(path)
    figures, digest = Figures(), hashlib.sha256()
    for row in rows:
        if isinstance(row, RowError):
            raise DataError(f"{path}: {row}; run `verl-steer data validate` first")
        figures.rows += 1
        figures.turns[len(turns_of(row))] += 1
        figures.images += sum(1 for _ in images_of(row))
        figures.kinds[row.kind.value] += 1
        figures.categories[row.category or "(none)"] += 1
        figures.sources[row.source, row.licence] += 1
        if subset := getattr(row, "subset", ""):
            figures.subsets[subset] += 1
        digest.update(canonical(row))
    figures.hash = digest.hexdigest()
    return name, figures


def write_card(path: Path, out: Path | None = None) -> Path:
    """Writes README.md and turns.png.

    Args:
        path: The split.
        out: Folder; default `FILE.card` beside it.

    Returns:
        The card.
    """
    name, figures = count(path)
    folder = out or path.with_name(f"{path.name}.card")
    folder.mkdir(parents=True, exist_ok=True)
    _histogram(figures, folder / "turns.png")
    write_text(folder / "README.md", _card(path, name, figures))
    return folder / "README.md"


def canonical(row: AnyRow) -> bytes:
    """A row's content as bytes, pictures by their digest; its place in a split is not part of it."""
    turns = [
        [turn.text, [image.sha256 for image in turn.images], turn.reply if isinstance(turn, Exchange) else None]
        for turn in turns_of(row)
    ]
    rest = row.model_dump(mode="json", exclude={"turns", "images", "index"})
    return json.dumps([rest, turns], sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _card(path: Path, name: str, figures: Figures) -> str:
    from huggingface_hub import DatasetCardData

    licences = {licence for _, licence in figures.sources}  # rows without one are not under the others' licence
    one = licences.pop() if len(licences) == 1 else ""
    header = DatasetCardData(
        license=one or "other",
        license_name=None if one else "as-its-sources",
        task_categories=["image-text-to-text"],
        tags=["safety", "multi-turn", "verl_steer"],
        size_categories=[_size(figures.rows)],
        pretty_name=f"{path.stem} ({name})",
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": path.name}]}],
    )
    parts = [f"---\n{header.to_yaml()}\n---\n\n# {path.stem}\n"]
    parts.append(
        f"{figures.rows} {name} rows, {figures.images} pictures, made with `verl-steer data`. Content hash "
        f"(rows in order, pictures by SHA-256): `{figures.hash}`.\n\n## Size, beside the paper's table 1\n"
    )
    parts.append(_table(("", "rows", "turns", "average turns"), _sizes(name, figures)))
    parts.append("\n![turns](turns.png)\n\n## Sources and licences\n")
    parts.append(
        _table(
            ("source", "licence", "rows"), [(s, x or "none stated", n) for (s, x), n in sorted(figures.sources.items())]
        )
    )
    for title, counter in (("Kinds", figures.kinds), ("Subsets", figures.subsets), ("Categories", figures.categories)):
        if counter:
            ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
            parts.append(f"\n## {title}\n")
            parts.append(_table((title.lower(), "rows"), ranked[:50]))
            if len(ranked) > 50:
                parts.append(f"\n... and {len(ranked) - 50} more.\n")
    parts.append(
        "\n## Use\n\nRows may ask for harmful things: that is what a student learns to decline. Each row keeps the "
        "licence of its source, and using the whole means keeping all of them.\n"
    )
    return "\n".join(parts)


def _sizes(name: str, figures: Figures) -> list[tuple[object, ...]]:
    span = f"{min(figures.turns)}-{max(figures.turns)}" if figures.turns else "-"
    total = sum(turns * n for turns, n in figures.turns.items())
    rows: list[tuple[object, ...]] = [("this file", figures.rows, span, round(total / max(1, figures.rows), 2))]
    if name in PAPER:
        title, *numbers = PAPER[name]
        rows.append((f"{title} in the paper", *numbers))
    return rows


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    """Text of a data set in a table: no cell border, no line, no markup, no link and no picture from elsewhere."""
    text = " ".join(str(value).split())[:120]
    return re.sub(r"[\\|`\[\]!]", r"\\\g<0>", text).replace("<", "&lt;")


def _size(rows: int) -> str:
    for limit, label in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return label
    return "1M<n<10M"


def _histogram(figures: Figures, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), constrained_layout=True)
    turns = sorted(figures.turns)
    bars = axes.bar(turns, [figures.turns[t] for t in turns], color="tab:blue")
    axes.bar_label(bars)
    axes.margins(y=0.1)  # room for the highest bar's label
    axes.set(xlabel="user turns", ylabel="rows", xticks=range(1, 11), xlim=(0.4, 10.6))
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
