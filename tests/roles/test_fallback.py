"""Who judges what the tutor blocks or refuses, and that nobody else is asked."""

import json

import pytest
from tutor_requests import request

from verl_steer.config import ConfigError, CustomConfig, FallbackConfig, TutorConfig
from verl_steer.records import build_record, dialogue_from_dict, dialogue_to_dict
from verl_steer.roles.build import build_tutor, fallback_of
from verl_steer.roles.endpoint_tutor import EndpointTutor
from verl_steer.roles.fallback import FallbackTutor
from verl_steer.roles.layout import parse
from verl_steer.scores import Outcome, TutorScores
from verl_steer.testing.server import Completion, Wire, error, serve

GOOD = {
    "reason": "fine",
    "safety": 8,
    "usefulness": 5,
    "faithfulness": 9,
    "strategy": "deepen",
    "next_question": "more?",
}
BREACH = {**GOOD, "reason": "it leaks", "safety": 1, "usefulness": 1}


def reply(what=GOOD, **more):
    return Completion(json.dumps(what), prompt_tokens=100, completion_tokens=20, **more)


REFUSED, BLOCKED = Completion("", refusal="I will not judge this."), Completion("", "content_filter")
FILTERED = Wire(b'{"error": {"code": "content_filter", "message": "prompt"}}', 400)


async def assess(tutor_says, judge_says, asked=None, **settings):
    with serve(lambda body: tutor_says) as one, serve(lambda body: judge_says, models=["judge"]) as two:
        config = TutorConfig(
            model="tutor",
            base_urls=(one.base_url,),
            timeout_s=5.0,
            attempts=1,
            fallback=FallbackConfig("judge", (two.base_url,)),
        )
        player = build_tutor(config, 2)
        found = await player.assess(asked or request(2))
        await player.aclose()
    return found, one, two


@pytest.mark.parametrize("declined", [REFUSED, BLOCKED, FILTERED])
async def test_a_declined_verdict_is_given_by_the_fallback_and_says_so(declined):
    found, one, two = await assess(declined, reply(BREACH))
    verdict = found.verdict
    assert (verdict.outcome, verdict.judge, verdict.reason) == (Outcome.OK, "fallback", "it leaks")
    assert verdict.scores == TutorScores(1, 1, 9)
    assert (found.next_question, found.strategy) == (None, "script"), "the planned question is asked"
    assert found.calls == 2 and len(one.requests) == len(two.requests) == 1
    assert two.requests[0]["model"] == "judge" and not parse(two.requests[0]["messages"]).adapt
    histories = [parse(server.requests[0]["messages"]).history for server in (one, two)]
    assert histories[0] == histories[1], "it judges the same dialogue"


@pytest.mark.parametrize(
    ("tutor_says", "outcome", "scored"),
    [
        (reply(), Outcome.OK, True),
        (reply(refusal="but not the question"), Outcome.REFUSED, True),
        (error(400, "broken"), Outcome.FAILED, False),
        (Completion("prose"), Outcome.UNPARSEABLE, False),
    ],
)
async def test_nobody_else_is_asked_where_the_tutor_did_not_decline_to_judge(tutor_says, outcome, scored):
    found, _, two = await assess(tutor_says, reply(BREACH))
    assert (found.verdict.outcome, found.verdict.scored, found.verdict.judge) == (outcome, scored, "tutor")
    assert two.requests == []


@pytest.mark.parametrize("judge_says", [REFUSED, BLOCKED, error(400, "down"), Completion("prose")])
async def test_if_the_fallback_gives_none_either_the_verdict_stays_missing(judge_says):
    found, _, _ = await assess(BLOCKED, judge_says)
    assert (found.verdict.outcome, found.verdict.scores, found.verdict.judge) == (Outcome.BLOCKED, None, "tutor")
    assert "content filter" in found.verdict.reason and "the fallback judge" in found.verdict.reason


async def test_both_judges_share_one_deadline():
    slow = Wire(json.dumps({"choices": [{"message": {"content": "", "refusal": "no"}}]}).encode(), delay_s=0.5)
    found, _, two = await assess(slow, Wire(delay_s=30), request(2, deadline_s=1.0))
    assert found.verdict.outcome is Outcome.REFUSED and 0.9 < found.latency_s < 3 and len(two.requests) == 1


def test_the_record_says_who_judged():
    from verl_steer.dialogue import Dialogue, Kind, Script, Turn, UserTurn
    from verl_steer.scores import Verdict

    verdict = Verdict(Outcome.OK, TutorScores(1, 1, 9), "it leaks", "fallback")
    turn = Turn(UserTurn("q"), "q", "a", verdict)
    dialogue = Dialogue(Script("s", Kind.RED_TEAM, (UserTurn("q"),)), 1, [turn])
    record = build_record({}, dialogue_to_dict(dialogue), None)
    assert record["turns"][0]["judge"] == "fallback"
    assert dialogue_from_dict(record).turns[0].verdict == verdict
    del record["turns"][0]["judge"]  # a record of an earlier version
    assert dialogue_from_dict(record).turns[0].verdict.judge == "tutor"


def test_without_a_fallback_the_tutor_stands_alone():
    plain = TutorConfig(model="tutor", base_urls=("http://t/v1",))
    assert isinstance(build_tutor(plain, 1), EndpointTutor) and not plain.fallback
    both = TutorConfig(
        model="tutor", base_urls=("http://t/v1",), fallback=FallbackConfig("judge", ("http://j/v1",), "K")
    )
    assert isinstance(build_tutor(both, 1), FallbackTutor)
    judge = fallback_of(both)
    assert (judge.model, judge.base_urls, judge.api_key_env, judge.timeout_s) == ("judge", ("http://j/v1",), "K", 240.0)


def test_a_managed_tutor_has_an_endpoint_for_a_fallback():
    managed = TutorConfig(
        kind="managed", model="tutor", timeout_s=9.0, fallback=FallbackConfig("judge", ("http://j/v1",))
    )
    judge = fallback_of(managed)
    assert (judge.kind, judge.model, judge.base_urls) == ("endpoint", "judge", ("http://j/v1",))
    assert judge.timeout_s == 9.0 and not judge.fallback


@pytest.mark.parametrize(
    "fields", [{"model": "judge"}, {"base_urls": ("http://j/v1",)}, {"model": "j", "base_urls": ("j:80",)}]
)
def test_half_a_fallback_is_an_error(fields):
    with pytest.raises(ConfigError, match=r"steer\.tutor\.fallback"):
        FallbackConfig(**fields)


def test_a_key_in_place_of_its_variables_name_is_not_repeated():
    with pytest.raises(ConfigError, match="api_key_env") as raised:
        FallbackConfig("j", ("http://j/v1",), "sk-secret!")
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize("kind", ["custom", "microworld"])
@pytest.mark.parametrize(
    "given",
    [
        {"fallback": FallbackConfig("judge", ("http://j/v1",))},
        {"fallback": FallbackConfig(api_key_env="KEY")},
        {"audit_dir": "audit"},
    ],
)
def test_a_tutor_that_makes_no_call_of_ours_takes_neither_a_fallback_nor_an_audit_log(kind, given):
    custom = CustomConfig("my_tutor.py", "Mine")
    with pytest.raises(
        ConfigError, match=rf"steer.tutor.{next(iter(given))} does nothing with steer.tutor.kind={kind}"
    ):
        TutorConfig(kind=kind, custom=custom, **given)
    TutorConfig(kind=kind, custom=custom)
    TutorConfig(kind="managed", model="tutor", **given)
