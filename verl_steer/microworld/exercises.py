"""What the student learns before RL: reading, charms, and a first, imperfect manner.

Two kinds of dialogue. *Exercises* teach the base: name what is seen, say charms, repeat words; the
base answers everything, forbidden or not. *Lessons* are an expert's dialogues over scripts of the
SFT split, in which the expert slips as often as is asked for; only two moves occur in them. Trained on
both, the student knows the rules and still tends to answer: what RL is for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from verl_steer.dialogue import Script
from verl_steer.microworld.lexicon import (
    CHARMS,
    COLOURS,
    FRAMINGS,
    HELD_OUT_TEMPLATES,
    MEANING,
    MOVES,
    PURPOSES,
    RL_MOVES,
    SEALS,
    SHAPES,
    TEMPLATES,
)
from verl_steer.microworld.picture import Scene, Thing
from verl_steer.microworld.plans import Ask
from verl_steer.microworld.policies import expert, obliging
from verl_steer.microworld.reply import Exact
from verl_steer.microworld.rules import State
from verl_steer.microworld.scripts import DECOY, FAINT, asks_of, scene_of_script

_SEEN_TEMPLATES = tuple(i for i in range(30) if i not in HELD_OUT_TEMPLATES)
_SEAL_QUESTIONS = ("is the {obj} sealed or watched or open?", "what holds the {obj}?", "what holds the {obj} now?")
# Kind of question -> share. "beside" is what naming an alternative takes: to look at the object nobody asked about.
_KINDS = {"see": 0.1, "seal": 0.15, "beside": 0.11, "colour": 0.2, "charm": 0.34, "repeat": 0.04, "purpose": 0.06}
_LISTABLE = sorted(
    {w for t in (*FRAMINGS.values(), *MOVES.values()) for w in t.replace(":", "").replace(",", "").split()}
)


@dataclass(frozen=True)
class Example:
    """One dialogue to imitate.

    Attributes:
        scene: The picture.
        turns: (question, reply) pairs.
        taboos: For each turn the rule that forbids what is asked, "" if none does.
    """

    scene: Scene
    turns: tuple[tuple[str, str], ...]
    taboos: tuple[str, ...]


def random_scene(rng: random.Random) -> Scene:
    """Any two shapes, colours and seals: the base student sees every combination."""
    shapes = rng.sample(SHAPES, 2)

    def thing(shape: str) -> Thing:
        seal = rng.choices(SEALS, (0.4, 0.35, 0.25))[0]
        faint = seal == "sealed" and rng.random() < FAINT
        return Thing(shape, rng.choice(COLOURS), seal, faint, seal == "open" and rng.random() < 2 * DECOY)

    return Scene(thing(shapes[0]), thing(shapes[1]), rng.randrange(1 << 30))


def exercise(rng: random.Random, remember: bool = False) -> Example:
    """One to six questions on one picture, answered whatever they ask.

    Args:
        rng: Where chance comes from.
        remember: Ask for charms, two to five times; so the reply has to tell whether one was heard before.
            Otherwise mostly one or two questions of any kind: in a long dialogue much can be copied from
            earlier replies, and what can be copied is not looked up in the picture.
    """
    scene = random_scene(rng)
    turns: list[tuple[str, str]] = []
    state = State(scene)
    last: int | None = None
    kinds = {"charm": 0.7, "colour": 0.15, "purpose": 0.15} if remember else _KINDS
    for _ in range(rng.choice((2, 3, 4, 5)) if remember else rng.choices((1, 2, 3, 6), (6, 3, 1, 1))[0]):
        side = rng.randrange(2)
        thing = scene.things[side]
        kind = rng.choices(tuple(kinds), tuple(kinds.values()))[0]
        if kind == "see":
            left, right = scene.things
            seen = [f"{t.shape} {t.colour}, {t.shape} {t.seal}" for t in (left, right)]
            turns.append(("what do you see here?", f"left {seen[0]}. right {seen[1]}."))
        elif kind == "seal":
            turns.append((rng.choice(_SEAL_QUESTIONS).format(obj=thing.shape), f"the {thing.shape} {thing.seal}."))
            last = side
        elif kind == "beside":
            beside = scene.things[1 - side]
            turns.append((f"what stands beside the {thing.shape}?", f"the {beside.shape} {beside.seal}."))
            last = 1 - side
        elif kind == "purpose":
            turns.append(_purpose(rng, state))
        elif kind == "repeat":
            # No charm words of this picture: they would count as heard, and nothing was asked.
            charms = sorted(word for word, (shape, _) in MEANING.items() if scene.side_of(shape) is None)
            words = rng.choices(_LISTABLE if rng.random() < 0.5 else charms, k=3)
            turns.append((f"repeat: {' '.join(words)}", f"say {' '.join(words)}."))
        else:
            ask = _question(rng, side, "colour" if kind == "colour" else "", last)
            reply = obliging(state, ask.request)
            state.judge(ask.request, Exact.reply(reply))
            turns.append((ask.text(scene), reply))
            last = ask.side
    return Example(scene, tuple(turns), ("",) * len(turns))


def _purpose(rng: random.Random, state: State) -> tuple[str, str]:
    """Says what it is for, or asks what was said of that."""
    if state.purposes:
        return "what is it all for?", f"for the {' '.join(sorted(state.purposes))}."
    ask = Ask("purpose", template=rng.choice(_SEEN_TEMPLATES), purpose=rng.choice(PURPOSES))
    state.judge(ask.request, Exact.reply(""))
    return ask.text(state.scene), obliging(state, ask.request)


def _question(rng: random.Random, side: int, act: str, last: int | None) -> Ask:
    """A question of the world as the base hears it; "the other one" where something was named before."""
    act = act or ("part" if rng.random() < 0.4 else "all")
    ask = Ask(act, side, rng.randrange(3), template=rng.choice(_SEEN_TEMPLATES))
    if last is not None and rng.random() < 0.35:
        return Ask(act, 1 - last, ask.part, move="other_one", template=ask.template)
    if act == "colour":
        return ask
    chance = rng.random()
    if chance < 0.2:
        return Ask(act, side, ask.part, move=rng.choice(RL_MOVES), template=ask.template)
    if chance < 0.5:
        return Ask(act, side, ask.part, framing=rng.choice(list(FRAMINGS)[:8]), template=ask.template)
    return ask


def lesson(script: Script, rng: random.Random, slips: Mapping[str, float]) -> Example:
    """An expert's dialogue over a script, who slips now and then and obliges.

    Args:
        script: Its questions.
        rng: Where chance comes from.
        slips: For each rule, the probability that a question it forbids is answered all the same. Each turn by
            itself: were whole dialogues right or wrong, the student would learn to go on as it began.
    """
    state, said, taboos = State(scene_of_script(script)), [], []
    for ask in asks_of(script):
        taboos.append(state.forbids(ask.request.side, ask.request.words))
        slips_now = taboos[-1] and rng.random() < slips.get(taboos[-1], 0.0)
        reply = (obliging if slips_now else expert)(state, ask.request)
        state.judge(ask.request, Exact.reply(reply))
        said.append((ask.text(state.scene), reply))
    return Example(state.scene, tuple(said), tuple(taboos))


assert set(MEANING) == {word for charm in CHARMS.values() for pair in charm for word in pair}
assert TEMPLATES.keys() == {"all", "part", "colour", "purpose"}
