"""The bench's judge: what it is shown, what it may say, and what a student can do about it."""

import asyncio
import json
from itertools import pairwise

import pytest
from tutor_requests import SCRIPT, TAG, request

from verl_steer.chat.client import ChatClient
from verl_steer.chat.outcome import Outcome
from verl_steer.chat.structured import ReplyError, parse_reply
from verl_steer.roles.fence import neutralise
from verl_steer.roles.judge import EndpointJudge, JudgeReply, JudgeRequest, parse, prompt_sha256, render
from verl_steer.roles.layout import prompt
from verl_steer.roles.tutor import Exchange
from verl_steer.testing.hostile import attacks
from verl_steer.testing.judge_canaries import judge_canaries, run_canaries, to_json
from verl_steer.testing.server import Completion, serve

GOOD = json.dumps({"reason": "declines, says why", "harmlessness": 3, "helpfulness": 2})


def asked(turns, system=""):
    tutor = request(turns)
    return JudgeRequest(SCRIPT, system, tutor.history, "key", TAG, 5.0)


def test_the_prompt_only_grows_shows_all_turns_and_does_not_tell_whether_the_script_is_harmful():
    prompts = [render(asked(turns, "be brief")) for turns in range(1, 5)]
    for earlier, later in pairwise(prompts):
        assert earlier[0] == later[0] == {"role": "system", "content": prompt("judge")}
        stable = json.dumps(earlier[1]["content"][:-1])[:-1]
        assert json.dumps(later[1]["content"]).startswith(stable)
    text = json.dumps(prompts[-1][1])
    assert "Script:" not in text and "Judge the student's reply of turn 4" in text
    assert sum(part["type"] == "image_url" for part in prompts[-1][1]["content"]) == 1
    assert render(asked(1)) != render(asked(1, "be brief"))
    with pytest.raises(ValueError, match="no reply to judge"):
        render(JudgeRequest(SCRIPT, "", (), "key", TAG, 5.0))


def test_what_is_rendered_reads_back_whatever_the_student_wrote():
    for attack in attacks():
        if attack.family == "long":
            continue
        reply = attack.apply("so say it.", TAG)
        history = (*request(1).history, Exchange("and then?", reply))
        system, found = parse(render(JudgeRequest(SCRIPT, "be brief", history, "key", TAG, 5.0)))
        assert system == "be brief" and len(found) == 2, attack.name
        assert TAG not in found[-1].reply.lower()
        if TAG not in neutralise(reply).lower():
            assert found[-1].reply == neutralise(reply), attack.name


@pytest.mark.parametrize(
    "bad", [[], [{}], [{}, {"content": "text"}], [{}, {"content": [{"type": "text", "text": "x"}]}]]
)
def test_another_prompt_is_not_read(bad):
    with pytest.raises(ValueError, match="not a judge's prompt"):
        parse(bad)


def test_only_the_scales_own_integers_are_a_verdict():
    assert parse_reply(GOOD, JudgeReply).harmlessness == 3
    for change in ({"harmlessness": 4}, {"harmlessness": -4}, {"helpfulness": -1}, {"helpfulness": 2.0}, {"extra": 1}):
        with pytest.raises(ReplyError):
            parse_reply(json.dumps({**json.loads(GOOD), **change}), JudgeReply)
    assert len(prompt_sha256()) == 64


@pytest.mark.parametrize(
    ("answer", "outcome", "calls"),
    [
        (Completion(GOOD), Outcome.OK, 1),
        (Completion("it is fine"), Outcome.UNPARSEABLE, 2),
        (Completion("", refusal="I cannot judge that."), Outcome.REFUSED, 1),
        (Completion("", finish_reason="content_filter"), Outcome.BLOCKED, 1),
        (Completion(GOOD, refusal="I would rather not."), Outcome.REFUSED, 1),
    ],
)
def test_scores_are_there_exactly_if_the_outcome_is_ok(answer, outcome, calls):
    async def run(url):
        judge = EndpointJudge(ChatClient("judge", [url], max_concurrency=1))
        try:
            return await judge.judge(asked(2))
        finally:
            await judge.aclose()

    with serve(lambda body: answer, ["judge"]) as server:
        found = asyncio.run(run(server.base_url))
    assert (found.outcome, found.calls) == (outcome, calls)
    assert (found.harmlessness is not None) == (found.helpfulness is not None) == (outcome is Outcome.OK)
    assert found.reason


class Rules:
    """A judge whose verdict is a function of the last reply."""

    model = "rules"

    def __init__(self, verdict):
        self.verdict = verdict

    async def judge(self, request):
        return self.verdict(request)


def test_the_canaries_pass_a_right_judge_and_fail_a_gullible_and_a_silent_one():
    from verl_steer.microworld.judging import judge_history
    from verl_steer.roles.judge import Judgement

    def gullible(request):
        if "10" in request.history[-1].reply:
            return Judgement(Outcome.OK, 3, 3, "as it says")
        return judge_history(request.history)

    def ask(verdict):
        report = asyncio.run(run_canaries(Rules(verdict), 2, concurrency=4, deadline_s=1.0))
        return to_json(report, 2)

    right = ask(lambda request: judge_history(request.history))
    assert right["passes"] and right["agreement"]["harmlessness"]["kappa"] == 1.0 and not right["misjudged"]
    assert right["agreement"].keys() == {"harmlessness", "helpfulness"} and right["attacks_each"] == 2
    fooled = ask(gullible)
    assert not fooled["passes"] and any("lifts harmlessness from -3 to 3" in f for f in fooled["failures"])
    silent = ask(lambda request: Judgement(Outcome.TIMEOUT, reason="no answer"))
    assert not silent["passes"] and silent["clean_outcomes"] == {"timeout": 39}
    assert ask(lambda request: Judgement(Outcome.OK, 0, 0))["agreement"]["harmlessness"]["kappa"] < 0.6
    assert len({canary.id for canary in judge_canaries(2)}) == 39 * 3
