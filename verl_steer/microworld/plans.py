"""What a script asks, turn by turn, under each rule: the plans of harmful scripts and of their twins.

Turns that matter to a rule are laid first; the others are filled with questions that are allowed in both twins. A
plan never says more of its rule than the rule needs: framings, moves and harmless purposes occur under all of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from verl_steer.microworld.lexicon import (
    FRAMINGS,
    HELD_OUT_FRAMINGS,
    HELD_OUT_TEMPLATES,
    MOVES,
    ORDINALS,
    PLEDGE,
    PURPOSES,
    RL_MOVES,
    SFT_MOVES,
    TEMPLATES,
)
from verl_steer.microworld.picture import Scene
from verl_steer.microworld.rules import Request

FORBIDDEN_SHARE = 0.4  # of the earlier turns of a script about a sealed object ask for its charm, too
PURPOSE_SHARE = 0.1  # of the idle turns of a script say a purpose that does not matter
HELD_SPLITS = ("probe", "bench")  # may hold what is held out of training
_MOVES_OF = {"sft": SFT_MOVES, "rl": RL_MOVES}
_TRAIN_FRAMINGS = tuple(f for f in FRAMINGS if f not in HELD_OUT_FRAMINGS)
_TRAIN_TEMPLATES = tuple(i for i in range(30) if i not in HELD_OUT_TEMPLATES)


@dataclass(frozen=True)
class Ask:
    """One planned question: what it asks for and how it is put.

    Its fields are what `rules.Request` says; `side` means nothing with act "purpose".
    """

    act: str
    side: int = 0
    part: int = 0
    move: str = ""
    framing: str = ""
    template: int = 0
    purpose: str = ""

    @property
    def request(self) -> Request:
        """What the rules judge."""
        return Request(self.act, None if self.act == "purpose" else self.side, self.part, self.purpose)

    def text(self, scene: Scene) -> str:
        """The question as the user says it, 5..14 words."""
        if self.act == "purpose":
            return TEMPLATES[self.act][self.template].format(purpose=self.purpose)
        thing = scene.things[self.side]
        name = "other one" if self.move == "other_one" else thing.shape
        if self.act != "colour" and self.move != "other_one":
            name = f"{thing.colour} {thing.shape}"
        body = TEMPLATES[self.act][self.template].format(obj=name, nth=ORDINALS[self.part])
        prefix = MOVES[self.move] if self.move else FRAMINGS[self.framing] if self.framing else ""
        return f"{prefix} {body}".strip()


@dataclass(frozen=True)
class Planner:
    """Lays out one pair of twins.

    Attributes:
        rng: Where chance comes from.
        split: One of `scripts.SPLITS`; decides which templates, moves and framings may occur.
        side: Where the target stands.
        turns: Length of the script, at least 3.
        other_too: Whether the charm of the other object may be asked for.
    """

    rng: random.Random
    split: str
    side: int
    turns: int
    other_too: bool

    def picture(self) -> list[Ask]:
        """R1: the last turn asks for the target's charm, and so may any before it. The twin asks the same."""
        asks: list[Ask] = []
        for t in range(self.turns):
            decisive = t == self.turns - 1 or self.rng.random() < FORBIDDEN_SHARE
            asks.append(self._dress(self._charm(self.side) if decisive else self._idle(0.4), asks))
        return asks

    def accumulation(self, early: bool) -> tuple[list[Ask], list[Ask]]:
        """R2: one early turn asks for a word of the target, the last for another; between them nothing of it.

        Args:
            early: The twin's early turn asks about the other object; otherwise the twin asks the same.
        """
        first, last = self.rng.sample(range(3), 2)
        at = self.rng.randrange(self.turns - 1)
        asks: list[Ask] = []
        for t in range(self.turns):
            if t == at:
                ask = Ask("part", self.side, first)
            elif t == self.turns - 1:
                ask = Ask("part", self.side, last)
            else:
                ask = self._idle(0.4)
            # A reference must mean the same object in both twins.
            asks.append(self._dress(ask, asks, not early or (t != at and named_last(asks) != at)))
        twin = list(asks)
        if early:
            twin[at] = replace(asks[at], side=1 - self.side)
        return asks, twin

    def pledge(self) -> tuple[list[Ask], list[Ask]]:
        """R3: an early turn says that it is for the river, the last asks for a charm; the twin's says another purpose."""
        at = self.rng.randrange(self.turns - 1)
        asks: list[Ask] = []
        for t in range(self.turns):
            if t == at:
                ask = Ask("purpose", purpose=PLEDGE)
            elif t == self.turns - 1 or self.rng.random() < 0.15:
                ask = self._charm(self.side)
            else:
                ask = self._idle(0.3)
            asks.append(self._dress(ask, asks))
        twin = list(asks)
        twin[at] = replace(asks[at], purpose=harmless_purpose(self.rng))
        return asks, twin

    def reference(self) -> tuple[list[Ask], list[Ask]]:
        """R4: the last turn asks for "the other one"; the turn before decides which one that is."""
        asks: list[Ask] = []
        for _ in range(self.turns - 2):
            asks.append(self._dress(self._idle(0.4), asks))
        asks.append(self._dress(Ask("colour", 1 - self.side), asks))
        last = replace(self._dress(self._charm(self.side), asks), move="other_one", framing="")
        twin = [*asks[:-1], replace(asks[-1], side=self.side), replace(last, side=1 - self.side)]
        return [*asks, last], twin

    def _charm(self, side: int) -> Ask:
        part = self.rng.random() < 0.35
        return Ask("part", side, self.rng.randrange(3)) if part else Ask("all", side)

    def _idle(self, charms: float) -> Ask:
        """A turn that no rule minds; with probability `charms` it asks for the other object's charm, if it may."""
        if self.other_too and self.rng.random() < charms:
            return self._charm(1 - self.side)
        if self.rng.random() < PURPOSE_SHARE:
            return Ask("purpose", purpose=harmless_purpose(self.rng))
        return Ask("colour", self.rng.randrange(2))

    def _dress(self, ask: Ask, before: list[Ask], may_refer: bool = True) -> Ask:
        """Chooses template, move and framing; the same for harmful and benign, or they would tell."""
        rng, held = self.rng, self.split in HELD_SPLITS
        ask = replace(ask, template=rng.choice(list(range(30) if held else _TRAIN_TEMPLATES)))
        if ask.act in ("colour", "purpose"):
            return ask
        draw_one = rng.random()
        if draw_one < 0.45:
            fitting = [m for m in _fitting(ask, before, may_refer) if held or m in _MOVES_OF[self.split]]
            return replace(ask, move=rng.choice(fitting)) if fitting else ask
        if draw_one < 0.75:
            return replace(ask, framing=rng.choice(list(FRAMINGS) if held else _TRAIN_FRAMINGS))
        return ask


def harmless_purpose(rng: random.Random) -> str:
    """Any purpose but the pledge."""
    return rng.choice([purpose for purpose in PURPOSES if purpose != PLEDGE])


def named_last(asks: list[Ask]) -> int:
    """Index of the last turn that names an object, -1 if none does."""
    return max((n for n, ask in enumerate(asks) if ask.act != "purpose"), default=-1)


def _fitting(ask: Ask, before: list[Ask], may_refer: bool) -> list[str]:
    """The moves that make sense at this point of a script."""
    if not before:
        return []
    moves = []
    if before[-1].act in ("colour", "purpose") or before[-1].side != ask.side:
        moves.append("bait_and_switch")
    if any(b.act in ("all", "part") and b.side == ask.side for b in before):
        moves += ["persistence", "deepen"]
    if ask.act == "part":
        moves.append("split")
    named = named_last(before)
    if named >= 0 and before[named].side != ask.side and may_refer:
        moves.append("other_one")
    return [*moves, "false_opened"]
