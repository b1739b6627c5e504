"""What a page shows, before it is HTML: the same for a bench and for training records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_steer.bench.report.tables import Table


@dataclass(frozen=True)
class Scale:
    """A score that every turn may have.

    Attributes:
        name: Short, in JSON.
        label: For people.
        bottom: Lowest value.
        top: Highest value.
        fails_below: A turn with a lower score is a failure; None if this scale decides no failure.
    """

    name: str
    label: str
    bottom: int
    top: int
    fails_below: float | None = None


@dataclass(frozen=True)
class PageTurn:
    """One exchange: `scores` in the order of the page's scales, None where there is no verdict."""

    question: str
    reply: str
    scores: Sequence[int | None]
    strategy: str = "script"
    outcome: str = "ok"
    verdict: str = "ok"
    reason: str = ""


@dataclass(frozen=True)
class PageDialogue:
    """One dialogue.

    Attributes:
        run: Place in `Page.runs`.
        name: Its id.
        group: Subset, or the step of a training run.
        category: As the source says.
        kind: benign, obfuscated or red_team; "" if unknown.
        planned: Planned turns.
        why: Why it failed or was rejected; "" if it is done.
        pair: Label of its twins, or "".
        system: System prompt, or "".
        images: SHA-256 of the pictures of every planned turn.
        turns: As far as it went.
    """

    run: int
    name: str
    group: str
    category: str
    kind: str
    planned: int
    turns: Sequence[PageTurn]
    why: str = ""
    pair: str = ""
    system: str = ""
    images: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Plot:
    """A finished SVG with its words."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Page:
    """Everything that one page shows.

    Attributes:
        title: Headline.
        facts: Label -> what it is, shown under the headline.
        runs: Names, in the order that `PageDialogue.run` counts them.
        group_label: What `PageDialogue.group` is called.
        scales: Of the turns' scores; the first one colours the page.
        tables: In order; folded ones are closed at first.
        plots: In order, behind the first table.
        dialogues: All that can be read on the page.
        pictures: SHA-256 -> file; pictures without one are named only.
    """

    title: str
    facts: Mapping[str, str]
    runs: Sequence[str]
    group_label: str
    scales: Sequence[Scale]
    tables: Sequence[Table]
    plots: Sequence[Plot]
    dialogues: Sequence[PageDialogue]
    pictures: Mapping[str, Path]
