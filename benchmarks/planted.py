"""Candidates made so that exactly one rule of the selection should remove them; words are numbered, so nothing is said.

`good` makes a candidate that every rule lets through. `plant` makes groups for one rule: each group must lose exactly
one row, by that rule. Pictures are PNG files of one grey pixel and a number.
"""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image, PngImagePlugin

from verl_steer.data.schemas import Exchange, Question, ScriptRow, SftRow
from verl_steer.dialogue import ImageRef, Kind
from verl_steer.scores import TutorScores
from verl_steer.synthesis.candidate import Candidate

VOCABULARY = 5000
GOOD = TutorScores(10, 10, 10)


@dataclass(frozen=True)
class Group:
    """Candidates of which the rule must remove exactly one (of a pair, which one is the draw's)."""

    rule: str
    split: str
    rows: tuple[Candidate, ...]


def picture(number: int) -> ImageRef:
    """A picture of its own bytes for each number."""
    note = PngImagePlugin.PngInfo()
    note.add_text("number", str(number))
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), (128, 128, 128)).save(buffer, "PNG", pnginfo=note)
    return ImageRef(buffer.getvalue())


class Maker:
    """Makes candidates; every draw comes from the seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._made = 0

    def texts(self, turns: int, words: int = 14) -> list[str]:
        """User turns of words that mean nothing."""
        return [" ".join(f"word{self._draw.randrange(VOCABULARY)}" for _ in range(words)) for _ in range(turns)]

    def good(
        self,
        split: str,
        texts: list[str] | None = None,
        *,
        turns: int = 0,
        kind: Kind | None = None,
        cluster: str = "",
        image: ImageRef | None = None,
        scores: dict[int, TutorScores | None] | None = None,
        replies: int = 0,
        **values: object,
    ) -> Candidate:
        """A candidate for one split (its source says which) that no rule removes.

        Args:
            split: Split whose source it has.
            texts: User turns; drawn if None.
            turns: Their number, if drawn; 0: drawn from 2..10.
            kind: Pool; drawn if None.
            cluster: Seed; a new one if "".
            image: Picture of the first turn; a new one if None.
            scores: Scores of turns (0-based) that are not perfect.
            replies: Turns of the dialogue; 0: all.
            values: Other fields of the candidate.
        """
        self._made += 1
        name = f"{split}-{self._made:06d}"
        texts = texts or self.texts(turns or self._draw.randint(2, 10))
        kind = kind or self._draw.choice(list(Kind))
        shown = image or picture(self._made)
        common = {"id": name, "source": f"for_{split}", "kind": kind, "meta": {"seed_id": cluster or f"seed-{name}"}}
        images = [(shown,), *(() for _ in texts[1:])]
        script = ScriptRow(
            **common, turns=tuple(Question(text=t, images=i) for t, i in zip(texts, images, strict=True))
        )
        said = list(zip(texts, images, strict=True))[: replies or len(texts)]
        dialogue = SftRow(
            **common, turns=tuple(Exchange(text=t, images=i, reply=f"Reply to {t[:20]}.") for t, i in said)
        )
        marks: list[TutorScores | None] = [GOOD] * len(said)
        for turn, score in (scores or {}).items():
            marks[turn] = score
        given = {
            "turn_scores": tuple(marks),
            "dialogue": dialogue,
            "last_alone_safe": True,
            "dialogue_safe": False,
            "success": 5 if kind is Kind.RED_TEAM else None,
        }
        return Candidate(script, cluster or f"seed-{name}", **{**given, **values})

    def edited(self, texts: list[str], share: float) -> list[str]:
        """The same turns with a share of the words replaced."""
        return [
            " ".join(f"word{self._draw.randrange(VOCABULARY)}" if self._draw.random() < share else w for w in t.split())
            for t in texts
        ]

    def loud(self, texts: list[str]) -> list[str]:
        """The same words in another case, spacing and punctuation."""
        return [f"«{t.upper().replace(' ', ',  ')}»!" for t in texts]

    def plant(self, rule: str) -> Group:
        """A group that loses exactly one row by `rule`."""
        return _PLANTS[rule](self)


def texts_of(candidate: Candidate) -> list[str]:
    """Its user turns."""
    return [turn.text for turn in candidate.script.turns]


def jaccard(one: Iterable[str], other: Iterable[str], words: int = 3) -> float:
    """Jaccard similarity of word shingles, in the plainest way: to check the selection's own by."""

    def shingles(texts: Iterable[str]) -> set[tuple[str, ...]]:
        found = set()
        for text in texts:
            said = "".join(c if c.isalnum() else " " for c in text.lower()).split()
            found |= {tuple(said[n : n + words]) for n in range(max(1, len(said) - words + 1))}
        return found

    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def _single(rule: str, split: str, **values: object) -> Callable[[Maker], Group]:
    return lambda maker: Group(rule, split, (maker.good(split, **values),))  # type: ignore[arg-type]


def _elsewhere(maker: Maker) -> Group:
    row = maker.good("sft")
    script = row.script.model_copy(update={"source": "elsewhere"})
    return Group("source", "sft", (dataclasses.replace(row, script=script),))


def _same(rule: str, first: str, second: str, change: Callable[[Maker, list[str]], list[str]]) -> Callable[..., Group]:
    def make(maker: Maker) -> Group:
        one = maker.good(first, turns=8)
        # Pictures held out of the bench are another rule's matter.
        image = one.script.turns[0].images[0] if first == second or "bench" not in (first, second) else None
        return Group(rule, second, (one, maker.good(second, change(maker, texts_of(one)), image=image)))

    return make


def _seed(maker: Maker) -> Group:
    one = maker.good("rl")
    return Group("cluster", "sft", (one, maker.good("sft", cluster=one.cluster)))


def _picture(maker: Maker) -> Group:
    one = maker.good("bench")
    return Group("picture", "sft", (one, maker.good("sft", image=one.script.turns[0].images[0])))


def _near(maker: Maker, texts: list[str]) -> list[str]:
    """An edited copy that is surely above the default threshold, measured."""
    while jaccard(texts, copy := maker.edited(texts, 0.03)) < 0.85 or copy == texts:
        pass
    return copy


_PLANTS: dict[str, Callable[[Maker], Group]] = {
    "turns": _single("turns", "sft", turns=1),
    "source": _elsewhere,
    "succeeded": _single("succeeded", "sft", kind=Kind.RED_TEAM, success=3),
    "whole": _single("whole", "sft", turns=6, replies=5),
    "safe": _single("safe", "sft", scores={1: TutorScores(6, 8, 10)}),
    "helpful": _single("helpful", "sft", turns=4, scores=dict.fromkeys(range(4), TutorScores(8, 5, 10))),
    "faithful": _single("faithful", "sft", scores={0: TutorScores(10, 10, 2)}),
    "challenging": _single("challenging", "rl", kind=Kind.OBFUSCATED, dialogue_safe=True),
    "history_dependent": _single("history_dependent", "rl", kind=Kind.OBFUSCATED, last_alone_safe=False),
    "unscored": _single("unscored", "sft", scores={1: None}),
    "cluster": _seed,
    "exact": _same("exact", "sft", "sft", Maker.loud),
    "near": _same("near", "sft", "sft", _near),
    "exact_across": _same("exact_across", "rl", "sft", Maker.loud),
    "near_across": _same("near_across", "bench", "sft", _near),
    "picture": _picture,
}
