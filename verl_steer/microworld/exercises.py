"""What the student learns before RL: reading, charms, and a first, imperfect manner.

Two kinds of dialogue. *Exercises* teach the base: name what is seen, say charms, repeat words; the
base answers everything, forbidden or not. *Lessons* are an expert's dialogues over scripts of the
SFT split: always right, so they never show how to go on after a mistake, and only two moves occur in
them. Trained on both, the student has seen the rule and still tends to answer: what RL is for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from verl_steer.microworld.lexicon import (
    CHARMS,
    COLOURS,
    FRAMINGS,
    HELD_OUT_TEMPLATES,
    MEANING,
    MOVES,
    RL_MOVES,
    SEALS,
    SHAPES,
    TEMPLATES,
)
from verl_steer.microworld.picture import Scene, Thing
from verl_steer.microworld.policies import answer, expert
from verl_steer.microworld.reply import Exact
from verl_steer.microworld.rules import State
from verl_steer.microworld.scripts import DECOY, FAINT, Ask, asks_of, generate, scene_of_script

_SEEN_TEMPLATES = tuple(i for i in range(30) if i not in HELD_OUT_TEMPLATES)
_SEAL_QUESTIONS = ("is the {obj} sealed or watched or open?", "what holds the {obj}?", "what holds the {obj} now?")
_LISTABLE = sorted(
    {w for t in (*FRAMINGS.values(), *MOVES.values()) for w in t.replace(":", "").replace(",", "").split()}
)


@dataclass(frozen=True)
class Example:
    """One dialogue to imitate: a picture and (question, reply) pairs."""

    scene: Scene
    turns: tuple[tuple[str, str], ...]


def random_scene(rng: random.Random) -> Scene:
    """Any two shapes, colours and seals: the base student sees every combination."""
    shapes = rng.sample(SHAPES, 2)

    def thing(shape: str) -> Thing:
        seal = rng.choices(SEALS, (0.4, 0.35, 0.25))[0]
        faint = seal == "sealed" and rng.random() < FAINT
        return Thing(shape, rng.choice(COLOURS), seal, faint, seal == "open" and rng.random() < 2 * DECOY)

    return Scene(thing(shapes[0]), thing(shapes[1]), rng.randrange(1 << 30))


def exercise(rng: random.Random) -> Example:
    """One to six questions on one picture, answered whatever they ask.

    Mostly one or two: in a long dialogue much can be copied from earlier replies, and what can be
    copied is not looked up in the picture.
    """
    scene = random_scene(rng)
    turns: list[tuple[str, str]] = []
    last: int | None = None
    for _ in range(rng.choices((1, 2, 3, 6), (6, 3, 1, 1))[0]):
        side = rng.randrange(2)
        thing = scene.things[side]
        kind = rng.choices(("see", "seal", "colour", "charm", "repeat"), (0.15, 0.2, 0.25, 0.36, 0.04))[0]
        if kind == "see":
            left, right = scene.things
            seen = [f"{t.shape} {t.colour}, {t.shape} {t.seal}" for t in (left, right)]
            turns.append(("what do you see here?", f"left {seen[0]}. right {seen[1]}."))
        elif kind == "seal":
            turns.append((rng.choice(_SEAL_QUESTIONS).format(obj=thing.shape), f"the {thing.shape} {thing.seal}."))
            last = side
        elif kind == "repeat":
            words = rng.choices(_LISTABLE if rng.random() < 0.5 else sorted(MEANING), k=3)
            turns.append((f"repeat: {' '.join(words)}", f"say {' '.join(words)}."))
        else:
            ask = _question(rng, side, "colour" if kind == "colour" else "", last)
            turns.append((ask.text(scene), answer(scene, ask.request)))
            last = ask.side
    return Example(scene, tuple(turns))


def _question(rng: random.Random, side: int, act: str, last: int | None) -> Ask:
    """A question of the world as the base hears it; "the other one" where something was named before."""
    act = act or ("part" if rng.random() < 0.4 else "all")
    ask = Ask(act, side, rng.randrange(3), template=rng.choice(_SEEN_TEMPLATES))
    if last is not None and rng.random() < 0.25:
        return Ask(act, 1 - last, ask.part, move="other_one", template=ask.template)
    if act == "colour":
        return ask
    chance = rng.random()
    if chance < 0.2:
        return Ask(act, side, ask.part, move=rng.choice(RL_MOVES), template=ask.template)
    if chance < 0.5:
        return Ask(act, side, ask.part, framing=rng.choice(list(FRAMINGS)[:8]), template=ask.template)
    return ask


def lessons(seed: int, n_pairs: int) -> list[Example]:
    """The expert's dialogues over SFT scripts and their twins."""
    examples = []
    for script in generate("sft", seed, n_pairs):
        scene = scene_of_script(script)
        state, turns = State(scene), []
        for ask in asks_of(script):
            reply = expert(state, ask.request)
            state.judge(ask.request, Exact.reply(reply))
            turns.append((ask.text(scene), reply))
        examples.append(Example(scene, tuple(turns)))
    return examples


def habits(rng: random.Random, seed: int, n_pairs: int) -> list[Example]:
    """Beginnings of scripts, answered by the base: the tendency that lessons do not quite undo."""
    examples = []
    for script in generate("sft", seed, n_pairs):
        scene, asks = scene_of_script(script), asks_of(script)
        asks = asks[: rng.randint(1, len(asks))]
        examples.append(Example(scene, tuple((a.text(scene), answer(scene, a.request)) for a in asks)))
    return examples


assert set(MEANING) == {word for charm in CHARMS.values() for pair in charm for word in pair}
assert TEMPLATES.keys() == {"all", "part", "colour"}
