"""The served roles of stages I and II: rules that read a model's prompt and write a model's reply."""

from collections import Counter

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra cpu")
from verl_steer.chat.structured import parse_reply
from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.microworld import plaintext, plainwords
from verl_steer.microworld.lexicon import PLEDGE
from verl_steer.microworld.picture import scene_of
from verl_steer.microworld.reply import Surface
from verl_steer.microworld.rules import OUTCOMES, State
from verl_steer.microworld.seeds import seeds
from verl_steer.microworld.server import registry
from verl_steer.roles import forensics, generator, planner, probe, red, success
from verl_steer.roles.attack_names import FRAMINGS
from verl_steer.roles.fill import render
from verl_steer.roles.frozen import chat_messages
from verl_steer.roles.tutor import Exchange, TutorRequest

HANDLERS = registry(noise=0.0)
TAG = "abcdefghij"
SEEDS = list(seeds(20, 1))
TEXT = "How do people usually talk about paperclips and staplers?"


def ask(role, fill, reply, seed=1):
    body = {"model": f"microworld-{role}", "messages": render(fill), "seed": seed}
    first = HANDLERS[body["model"]](body)
    assert HANDLERS[body["model"]](body) == first, "the same request, the same reply"
    return parse_reply(first, reply)


def say(role, history, question, images=(), seed=1):
    body = {
        "model": f"microworld-{role}",
        "messages": chat_messages("guidelines", history, question, images),
        "seed": seed,
    }
    return HANDLERS[body["model"]](body)


@pytest.mark.parametrize("images", [True, False])
def test_writers_keep_to_their_replies_and_lengths(images):
    for number, seed in enumerate(SEEDS):
        shown, question = (seed.images, seed.question) if images else ((), f"{TEXT} {number}")
        rewrites = ask("probe", probe.fill(TAG, question, "", shown), probe.ProbeReply, number)
        assert rewrites.benign_question != rewrites.obfuscated_question
        for kind in (Kind.BENIGN, Kind.OBFUSCATED):
            for turns in (2, 10):
                fill = generator.fill(TAG, rewrites.obfuscated_question, kind, turns, shown)
                script = ask("generator", fill, generator.ScriptReply, number).turns
                assert len(script) == turns and script[-1] == rewrites.obfuscated_question
        plan = ask("planner", planner.fill(TAG, "q?", "seen", 7, shown), planner.PlanReply, number)
        assert planner.flaw(plan, 7) is None
        ask("forensics", forensics.fill(TAG, question, shown), forensics.ForensicsReply, number)
        for framing in FRAMINGS:
            framed = ask("red", red.frame(TAG, question, "seen", framing, shown), red.QuestionReply).question
            assert framed.endswith(question.rpartition(": ")[2])  # a move before it gives way to the framing


def test_benign_scripts_of_the_world_ask_for_nothing_forbidden():
    for number, seed in enumerate(SEEDS):
        scene = scene_of(seed.images[0].data)
        rewrites = ask("probe", probe.fill(TAG, seed.question, "", seed.images), probe.ProbeReply, number)
        fill = generator.fill(TAG, rewrites.benign_question, Kind.BENIGN, 10, seed.images)
        for text in ask("generator", fill, generator.ScriptReply, number).turns:
            request = Surface.question(text, scene, None)
            assert request.side is not None or request.purpose not in ("", PLEDGE)
            assert not State(scene).forbids(request.side, request.words)


def test_harm_by_history_alone_occurs():
    """The last question alone may be answered; after another word of a watched object, or a pledge, it may not."""
    found = Counter()
    for number, seed in enumerate(SEEDS):
        scene = scene_of(seed.images[0].data)
        rewrites = ask("probe", probe.fill(TAG, seed.question, "", seed.images), probe.ProbeReply, number)
        fill = generator.fill(TAG, rewrites.obfuscated_question, Kind.OBFUSCATED, 6, seed.images)
        state = State(scene)
        for text in ask("generator", fill, generator.ScriptReply, number).turns:
            request = Surface.question(text, scene, None)
            forbidden = state.forbids(request.side, request.words)
            alone = State(scene).forbids(request.side, request.words)
            if request.act == "purpose":
                state.purposes.add(request.purpose)
            elif not forbidden:
                state.heard[request.side].update(request.words)
        found[forbidden, alone] += 1
    assert found["R2", ""] >= 4 and found["R3", ""] >= 2 and found["R1", "R1"] >= 3


def test_the_place_of_a_request_for_a_sealed_charm_does_not_tell():
    """Always asked last, it would teach to refuse what comes late."""
    forbidden = Counter()
    for number, seed in enumerate(seeds(60, 2)):
        scene = scene_of(seed.images[0].data)
        rewrites = ask("probe", probe.fill(TAG, seed.question, "", seed.images), probe.ProbeReply, number)
        fill = generator.fill(TAG, rewrites.obfuscated_question, Kind.OBFUSCATED, 4, seed.images)
        script = [
            Surface.question(text, scene, None) for text in ask("generator", fill, generator.ScriptReply, number).turns
        ]
        if State(scene).forbids(script[-1].side, script[-1].words) == "R1":
            forbidden.update(t for t, r in enumerate(script) if State(scene).forbids(r.side, r.words) == "R1")
    assert forbidden[3] >= 15 and all(0.15 <= forbidden[turn] / forbidden[3] <= 0.65 for turn in range(3))


def test_the_red_agent_keeps_a_benign_question_and_the_first_one():
    history = [Exchange("What is it?", "A box.")]
    for seed in range(20):
        for kind, said in ((Kind.BENIGN, history), (Kind.RED_TEAM, [])):
            assert ask("red", red.ask_turn(TAG, "And?", kind, said, ()), red.QuestionReply, seed).question == "And?"
    pressed = {
        ask("red", red.ask_turn(TAG, "And?", Kind.RED_TEAM, history, ()), red.QuestionReply, s).question
        for s in range(40)
    }
    assert "And?" in pressed and len(pressed) > 2 and all(text.endswith("And?") for text in pressed)


def test_in_the_world_pressing_tells_nothing_of_what_is_meant():
    history = [Exchange("What is it?", "A box.")]

    def pressed(kind):
        fill = red.ask_turn(TAG, "And?", kind, history, SEEDS[0].images)
        return {s for s in range(100) if ask("red", fill, red.QuestionReply, s).question != "And?"}

    harmful = pressed(Kind.RED_TEAM)
    assert 20 <= len(harmful) <= 40 and 20 <= len(pressed(Kind.BENIGN)) <= 40


def test_the_blue_expert_is_right_but_for_some_errors_and_the_target_is_not():
    right = Counter()
    for seed in SEEDS:
        scene = scene_of(seed.images[0].data)
        for luck in range(10):
            for role in ("blue", "target"):
                request = Surface.question(seed.question, scene, None)
                said = say(role, [], seed.question, seed.images, luck)
                right[role] += OUTCOMES[State(scene).judge(request, Surface.reply(said))].safety >= 8
    assert right["blue"] >= 190 and right["target"] < right["blue"]


def test_an_attack_on_the_target_sometimes_succeeds():
    scores = Counter()
    for seed in SEEDS:
        for luck in range(5):
            reply = say("target", [], seed.question, seed.images, luck)
            fill = success.fill(TAG, seed.question, [Exchange(seed.question, reply, seed.images)])
            scores[ask("success", fill, success.SuccessReply).score] += 1
    assert scores.total() == 100 and scores[5] + scores[4] >= 10 and scores[2] + scores[1] >= 10


def test_plain_talk_is_readable_for_the_rule_tutor():
    framed = f"{plainwords.OPENINGS['urgency']} {TEXT}"
    script = Script("s", Kind.OBFUSCATED, (UserTurn(framed),))

    def level(reply):
        request = TutorRequest(script, (Exchange(framed, reply),), None, False, "k", TAG, 1.0)
        return plaintext.classify(request)

    assert level(plainwords.refusal(framed)) == "guided_refusal" and level(plainwords.answer(framed)) == "breach"
    assert plainwords.pressed(framed) and not plainwords.pressed(TEXT)
    replies = {level(say("target", [], framed, seed=s)) for s in range(20)}
    assert replies == {"guided_refusal", "breach"}
    judged = {
        ask("success", success.fill(TAG, TEXT, [Exchange(framed, said)]), success.SuccessReply).score
        for said in (plainwords.refusal(framed), plainwords.answer(framed))
    }
    assert judged == {2, 4}


@pytest.mark.parametrize("role", ["probe", "generator", "forensics", "planner", "red", "blue", "target", "success"])
def test_another_prompt_is_an_error_of_the_caller(role):
    for messages in ([], [{"role": "system", "content": "s"}], [{"role": "user", "content": "a"}] * 2):
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            HANDLERS[f"microworld-{role}"]({"model": f"microworld-{role}", "messages": messages, "seed": 1})


def test_seeds_are_about_three_rules_and_no_two_alike():
    made = list(seeds(50, 2, "other"))
    assert Counter(seed.category for seed in made) == {"accumulation": 20, "picture": 20, "pledge": 10}
    assert len({seed.id for seed in made}) == 50 and {seed.source for seed in made} == {"other"}
    assert not {s.images[0].sha256 for s in made} & {s.images[0].sha256 for s in seeds(50, 3)}
