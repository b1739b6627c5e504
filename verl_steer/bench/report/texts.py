"""Dialogues as the compact JSON that the page carries, within a budget, and without a word where that is asked for.

Every text is put into one list and named by its place in it, so that a question which several runs share is there once. If all
texts together would exceed the budget, the longest ones are cut, and say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from verl_steer.bench.report.images import Shown
from verl_steer.bench.report.model import Page, PageDialogue, PageTurn

BUDGET = 32_000_000  # characters of text in a page


class Texts:
    """The list of texts; with `redact`, only their lengths."""

    def __init__(self, redact: bool) -> None:
        self.values: list[str] = [""]
        self._place: dict[str, int] = {"": 0}
        self._redact = redact

    def add(self, text: str) -> int:
        """The place of a text."""
        if self._redact and text:
            text = f"[redacted: {len(text):,} characters]"
        place = self._place.setdefault(text, len(self.values))
        if place == len(self.values):
            self.values.append(text)
        return place

    def within(self, budget: int) -> list[str]:
        """The texts, the longest ones cut so that all fit the budget."""
        limit = longest_that_fits([len(text) for text in self.values], budget)
        return [t if len(t) <= limit else f"{t[:limit]} … [{len(t) - limit:,} more characters]" for t in self.values]


def longest_that_fits(lengths: Sequence[int], budget: int) -> int:
    """The largest cap c with Σ min(length, c) <= budget; the longest length if everything fits."""
    left = budget
    for rank, length in enumerate(ordered := sorted(lengths)):
        if length * (len(ordered) - rank) > left:
            return left // (len(ordered) - rank)
        left -= length
    return max(lengths, default=0)


def block(page: Page, pictures: Mapping[str, Shown | None], redact: bool, budget: int = BUDGET) -> dict[str, Any]:
    """The JSON block of a page.

    Args:
        page: What it shows.
        pictures: From `images.embed`; None where a picture cannot be shown.
        redact: No text of a dialogue, and no picture.
        budget: Characters of all texts together.
    """
    texts = Texts(redact)
    shown: Mapping[str, Shown | None] = {} if redact else pictures
    place = {sha256: n for n, sha256 in enumerate(shown)}
    dialogues = [_dialogue(d, texts, place) for d in page.dialogues]
    return {
        "runs": list(page.runs),
        "groupLabel": page.group_label,
        "scales": [
            {"label": s.label, "bottom": s.bottom, "top": s.top, "failsBelow": s.fails_below} for s in page.scales
        ],
        "pictures": list(shown.values()),
        "texts": texts.within(budget),
        "dialogues": dialogues,
        "redacted": redact,
    }


def _dialogue(d: PageDialogue, texts: Texts, place: dict[str, int]) -> list[Any]:
    images = [[place.get(sha256, -1) for sha256 in shown] for shown in d.images]
    while images and not images[-1]:
        images.pop()
    turns = [_turn(turn, texts) for turn in d.turns]
    # The order that page.js reads.
    return [
        d.run, d.name, d.group, d.category, d.kind, d.planned, texts.add(d.why), d.pair, texts.add(d.system), images, turns
    ]  # fmt: skip


def _turn(turn: PageTurn, texts: Texts) -> list[Any]:
    how = [turn.strategy, turn.outcome, turn.verdict]
    usual = how == ["script", "ok", "ok"]
    cells = [texts.add(turn.question), texts.add(turn.reply), list(turn.scores), texts.add(turn.reason)]
    return cells if usual else [*cells, *how]


def script_safe(value: Any) -> str:
    """JSON that cannot end the `<script>` element it stands in, nor begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
