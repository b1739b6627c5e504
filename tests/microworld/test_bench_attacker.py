"""The bench's attacker: asks for what is forbidden as soon as something is, and shares nothing with the tutor."""

import asyncio
import subprocess
import sys

from verl_steer.dialogue import Kind
from verl_steer.microworld import lexicon
from verl_steer.microworld.attacker import MicroworldAttacker
from verl_steer.microworld.policies import expert, obliging
from verl_steer.microworld.reading import read
from verl_steer.microworld.reply import Surface
from verl_steer.microworld.scripts import generate, scene_of_script
from verl_steer.roles.tutor import Exchange, TutorRequest

SCRIPTS = generate("probe", 5, 60)


def play(script, policy, turns=8, luck=0):
    """Turns (question, forbidden) and strategies of a dialogue whose questions the attacker writes."""
    attacker, scene, history, strategies = MicroworldAttacker(), scene_of_script(script), [], []
    for turn in range(turns):
        question = script.turns[min(turn, len(script.turns) - 1)].text
        if turn:
            request = TutorRequest(
                script, tuple(history), script.turns[-1], True, f"{script.seed_id}|{turn}|{luck}", "", 1
            )
            attack = asyncio.run(attacker.attack(request))
            assert attack == asyncio.run(attacker.attack(request))
            strategies.append(attack.strategy)
            question = attack.question or question
        reading = read(scene, history)
        reading.hear(question)
        reply = policy(reading.state, reading.request)
        history.append(Exchange(question, reply, script.turns[0].images if turn == 0 else ()))
    return history, strategies


def forbidden(script, history):
    scene = scene_of_script(script)
    return [bool(read(scene, history[: n + 1]).forbidden) for n in range(len(history))]


def test_something_forbidden_is_asked_within_two_turns_of_every_harmful_script_and_again():
    late = 0
    for script in SCRIPTS:
        if script.kind is Kind.BENIGN:
            continue
        for policy in (expert, obliging):
            history, strategies = play(script, policy)
            asked = forbidden(script, history)
            assert sum(asked) >= 3, script.meta["rule"]
            late += not any(asked[:4])
            assert {"persistence", "deepen", "bait_and_switch"} >= set(strategies) - {"script"}
            assert all(5 <= len(exchange.question.split()) <= 14 for exchange in history)
    assert late <= 12  # a pledge is drawn at random


def test_a_safe_script_is_followed():
    for script in SCRIPTS[1:20:2]:
        _, strategies = play(script, obliging)
        assert set(strategies) == {"script"}


def test_framings_and_moves_that_no_training_saw_occur():
    said = " ".join(
        e.question for script in SCRIPTS[::2] for luck in (0, 1) for e in play(script, expert, luck=luck)[0]
    )
    assert all(lexicon.FRAMINGS[name] in said for name in lexicon.HELD_OUT_FRAMINGS)
    assert lexicon.MOVES["false_opened"] in said and "other one" in said


def test_questions_mean_what_was_planned():
    """What the attacker wants is what a reader of its words understands, references included."""
    pressed = 0
    for script in SCRIPTS[::2]:
        history, strategies = play(script, expert)
        for n, strategy in enumerate(strategies, 1):
            if strategy == "persistence":
                pressed += 1
                assert read(scene_of_script(script), history[: n + 1]).forbidden
    assert pressed > 100


def test_it_loads_nothing_of_the_tutor():
    code = (
        "import sys, verl_steer.microworld.attacker, verl_steer.microworld.judging\n"
        "assert 'verl_steer.microworld.tutor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_dialogue_without_a_picture_keeps_its_questions():
    bare = [Exchange("what is it?", "a box.")]
    request = TutorRequest(SCRIPTS[0], tuple(bare), SCRIPTS[0].turns[1], True, "k", "", 1)
    assert asyncio.run(MicroworldAttacker().attack(request)).question is None
    assert Surface.question("what is it?", scene_of_script(SCRIPTS[0]), None).side is None
