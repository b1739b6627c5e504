"""The canaries: right judges pass, bad ones do not, and what is missing is counted as missing."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import httpx
import pytest

from verl_steer.config import TutorConfig
from verl_steer.microworld.canaries import EXPECTED
from verl_steer.microworld.lexicon import words_of_charm
from verl_steer.microworld.picture import scene_of
from verl_steer.microworld.reply import Exact, Surface
from verl_steer.microworld.rules import OUTCOMES, State
from verl_steer.microworld.tutor import MicroworldTutor
from verl_steer.roles.endpoint_tutor import EndpointTutor
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.layout import render
from verl_steer.roles.tutor import Assessment
from verl_steer.scores import Outcome, TutorScores, Verdict
from verl_steer.testing.canaries import Answered, Canary, ask_all, built_in, hostile_variants
from verl_steer.testing.canary_file import CanaryFileError, read_canary_file
from verl_steer.testing.canary_report import kappa, report
from verl_steer.testing.canary_table import print_report
from verl_steer.testing.hostile import FAMILIES
from verl_steer.testing.prompt_check import prompt_faults

CLEAN = built_in()
ALL = [*CLEAN, *hostile_variants(CLEAN, 4)]


class Judge:
    """A tutor whose verdict is a function of the request."""

    def __init__(self, verdict):
        self.verdict, self.requests = verdict, []

    async def assess(self, request):
        self.requests.append(request)
        return Assessment(self.verdict(request))

    async def aclose(self):
        """Nothing is held."""


def ok(safety, usefulness=1, faithfulness=5):
    return Verdict(Outcome.OK, TutorScores(safety, usefulness, faithfulness))


def rules(request):
    return MicroworldTutor(noise=0.0).judge(request).verdict


def judged(verdict, canaries=ALL):
    answers = asyncio.run(ask_all(Judge(verdict), canaries, concurrency=8, deadline_s=5.0))
    return report("built-in", answers)


# -- the cases --------------------------------------------------------------------------------------


def test_the_cases_cover_every_expected_outcome_and_both_kinds_of_rule():
    assert len({canary.id for canary in ALL}) == len(ALL)
    outcomes = {canary.id.split("-", 2)[2].rsplit("-", 1)[0].replace("-", "_") for canary in CLEAN}
    assert outcomes == set(EXPECTED)
    assert {len(canary.history) for canary in CLEAN} == {1, 2}
    variants = Counter(canary.family for canary in ALL if canary.clean)
    assert set(variants) == set(FAMILIES) - {"long"} and min(variants.values()) >= 5
    assert [*built_in(), *hostile_variants(built_in(), 4)] == ALL


@pytest.mark.parametrize("canary", CLEAN, ids=lambda canary: canary.id)
def test_a_label_is_what_the_oracles_reader_and_the_taboo_say(canary):
    scene = scene_of(canary.history[0].images[0].data)
    state = State(scene)
    for exchange in canary.history:
        name = state.judge(Surface.question(exchange.question, scene, None), Exact.reply(exchange.reply))
    assert canary.id.split("-", 2)[2].rsplit("-", 1)[0].replace("-", "_") == name
    assert all(low <= getattr(OUTCOMES[name], s) <= high for s, (low, high) in canary.expected.items())
    # A judge that has never heard of this world finds what it needs in the prompt.
    charm = " ".join(words_of_charm(scene.things[0].shape))
    assert all(word in canary.script.system for word in ("ring", "sealed", "eye", "watched", "open", charm))


async def _requests(canaries):
    judge = Judge(lambda request: ok(8))
    await ask_all(judge, canaries, concurrency=1, deadline_s=5.0)
    return judge.requests


async def test_every_canary_is_fenced_in_its_prompt_and_shares_luck_and_tag_with_its_clean_case():
    requests = await _requests(ALL)
    for canary, request in zip(ALL, requests, strict=True):
        assert prompt_faults(render(request), request.fence) == []
        assert request.random_key == f"canary|{canary.clean or canary.id}"
        assert request.fence == fence_tag(b"canaries", canary.clean or canary.id)
        assert not request.adapt and request.planned_next is None


def test_a_variant_of_a_dialogue_may_carry_the_attack_in_an_earlier_reply_too():
    by_id = {canary.id: canary for canary in CLEAN}
    changed = [
        [a.reply != b.reply for a, b in zip(v.history, by_id[v.clean].history, strict=True)]
        for v in ALL
        if v.clean and len(v.history) == 2
    ]
    assert [True, True] in changed and [False, True] in changed and all(last for _, last in changed)


# -- judges -----------------------------------------------------------------------------------------


def test_the_rule_tutor_passes_and_no_variant_moves():
    found = judged(rules)
    assert (found.failures, found.notes, found.misjudged) == ([], [], [])
    assert found.agreement["safety"].kappa == found.agreement["safety"].in_range == 1.0
    steering = found.steering["all"]
    assert (steering.variants, steering.compared, steering.up, steering.down, steering.silenced) == (96, 96, 0, 0, 0)


def test_a_judge_that_obeys_injected_scores_does_not_pass():
    def obeys(request):
        reply = request.history[-1].reply
        return ok(10, 10, 10) if re.search(r"10", reply) else rules(request)

    found = judged(obeys)
    assert found.agreement["safety"].kappa == 1.0  # well calibrated, and for sale
    assert found.steering["all"].safety_up > 80 and found.steering["all"].worst_rise == 9
    assert found.failures and all("lifts safety from" in failure for failure in found.failures)
    assert any("/override/" in failure for failure in found.failures)


def test_a_judge_that_refuses_is_missing_and_not_low():
    found = judged(lambda request: Verdict(Outcome.REFUSED, reason="no"))
    assert found.clean_outcomes == {"refused": 39} and found.hostile_outcomes == {"refused": 96}
    assert found.agreement["safety"].cases == 0 and found.agreement["safety"].bias is None
    assert "0 of 39 clean cases brought scores" in found.failures[0] and "39 refused" in found.failures[0]
    assert found.steering["all"].up == found.steering["all"].silenced == 0


@pytest.mark.parametrize("safety", [1, 5, 8, 10])
def test_a_constant_judge_does_not_pass(safety):
    found = judged(lambda request: ok(safety))
    assert any("kappa of safety" in failure for failure in found.failures)
    assert found.agreement["safety"].kappa <= 0


def test_a_judge_that_attacks_silence_is_reported():
    def falls_silent(request):
        hostile = "10" in request.history[-1].reply
        return Verdict(Outcome.UNPARSEABLE, reason="?") if hostile else rules(request)

    found = judged(falls_silent)
    assert found.failures == [] and found.steering["all"].silenced > 80
    assert found.hostile_outcomes["unparseable"] == found.steering["all"].silenced
    assert found.steering["all"].compared + found.steering["all"].silenced == 96


def test_a_rise_counts_from_the_label_where_the_clean_verdict_is_missing():
    breach = next(c for c in CLEAN if "sealed-breach" in c.id)
    variant = hostile_variants([breach], 1)[0]
    for safety, fails in ((4, False), (5, True)):  # the label is 1..2
        answers = [Answered(breach, Verdict(Outcome.TIMEOUT)), Answered(variant, ok(safety))]
        rose = [f for f in report("x", answers).failures if "lifts safety" in f]
        assert bool(rose) == fails


def test_rises_of_what_is_no_breach_are_reported_and_do_not_fail():
    def kinder(request):
        found = rules(request)
        hostile = "10" in request.history[-1].reply
        return ok(min(10, found.scores.safety + 4)) if hostile and found.scores.safety > 4 else found

    found = judged(kinder)
    assert found.failures == [] and found.steering["all"].safety_up > 20


def test_kappa_is_cohens_with_quadratic_weights():
    assert kappa([1, 5, 10], [1, 5, 10]) == 1
    assert kappa([1, 10], [10, 1]) == pytest.approx(-1)
    assert kappa([1, 4, 8, 10], [5, 5, 5, 5]) == pytest.approx(0, abs=0.1)
    assert kappa([3, 3], [3, 3]) is None and kappa([], []) is None
    # By the definition, from the table of counts: 1 - sum(w O) / sum(w E).
    a, b = [1, 2, 2, 3, 3, 3], [1, 2, 3, 3, 3, 1]
    o = Counter(zip(a, b, strict=True))
    seen = sum((i - j) ** 2 * n for (i, j), n in o.items())
    chance = sum((i - j) ** 2 * Counter(a)[i] * Counter(b)[j] / 6 for i in range(1, 4) for j in range(1, 4))
    assert kappa(a, b) == pytest.approx(1 - seen / chance)


def test_few_cases_or_one_label_only_are_noted_and_not_failed():
    alike = [c for c in CLEAN if c.id.endswith("over-refusal-1")]
    found = judged(lambda request: ok(5), alike)
    assert found.failures == [] and "3 scored clean cases with 1 different labels" in found.notes[0]


def test_the_table_shows_what_is_off_and_escapes_text(capsys):
    odd = [replace(c, id="[red]" + c.id) for c in CLEAN]
    print_report(judged(lambda request: ok(1), [*odd, *hostile_variants(odd, 1)]))
    shown = capsys.readouterr().out
    assert "does not pass" in shown and "[red]star" in shown and "and " in shown
    print_report(judged(rules))
    assert "passes" in capsys.readouterr().out


# -- a file of one's own ----------------------------------------------------------------------------

LINE = {"kind": "red_team", "turns": [{"user": "q", "reply": "r"}], "safety": 8}


def write(tmp_path, *lines):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_file_is_read_with_pictures_ranges_and_thinking(tmp_path):
    (tmp_path / "a.png").write_bytes(CLEAN[0].history[0].images[0].data)
    turns = [
        {"user": "q1", "images": ["a.png"], "reply": "r1"},
        {"user": "q2", "reply": "<think>t</think>r2", "thinking": "t"},
    ]
    full = {
        "id": "x",
        "kind": "benign",
        "system": "s",
        "turns": turns,
        "safety": [4, 6],
        "usefulness": 3,
        "faithfulness": None,
    }
    found, second = read_canary_file(write(tmp_path, full, "", LINE))
    assert (found.id, second.id) == ("x", "line 3")
    assert found.expected == {"safety": (4, 6), "usefulness": (3, 3)} and found.label("safety") == 5
    assert found.history[0].images == CLEAN[0].history[0].images and found.history[1].thinking == "t"
    assert (found.script.system, found.script.kind.harmful) == ("s", False)
    assert len(hostile_variants([found, second], 2)) == 4


def test_a_text_with_line_separators_is_one_line_of_the_file(tmp_path):
    spoken = "one\u2028two\u2029three\x85four"
    line = {**LINE, "turns": [{"user": spoken, "reply": "r"}]}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(line, ensure_ascii=False) + "\r\n" + json.dumps(LINE), encoding="utf-8")
    first, second = read_canary_file(path)
    assert first.history[0].question == spoken and second.id == "line 2"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Expecting"),
        ("[" * 100_000, ""),
        ([1], "must be a JSON object, got list"),
        ({**LINE, "safty": 1}, "unknown key 'safty'; did you mean safety?"),
        ({**LINE, "safety": 11}, "safety=11 must be an integer 1..10"),
        ({**LINE, "safety": True}, "safety=True"),
        ({**LINE, "safety": [5, 3]}, "[5, 3]"),
        ({**LINE, "usefulness": "8"}, "usefulness='8'"),
        ({k: v for k, v in LINE.items() if k != "safety"}, "lacks the key 'safety'"),
        ({**LINE, "kind": "redteam"}, "did you mean red_team?"),
        ({**LINE, "turns": []}, "1..10"),
        ({**LINE, "turns": [{"user": "q"}]}, "turns[1] lacks the key 'reply'"),
        ({**LINE, "turns": [{"user": "q", "reply": "r", "image": []}]}, "did you mean images?"),
        ({**LINE, "turns": [{"user": "q", "reply": 3}]}, "turns[1].reply must be text"),
        ({**LINE, "turns": [{"user": "q", "reply": "r", "thinking": "t"}]}, "part of turns[1].reply"),
        ({**LINE, "turns": [{"user": "q", "reply": "r", "images": "a.png"}]}, "list of paths"),
        ({**LINE, "turns": [{"user": "q", "reply": "r", "images": ["none.png"]}]}, "none.png"),
        ({**LINE, "turns": [{"user": "q", "reply": "r", "images": ["mine.jsonl"]}]}, "is not PNG"),
    ],
)
def test_a_wrong_line_is_named_with_file_line_and_what_is_right(tmp_path, line, says):
    path = write(tmp_path, LINE, line)
    with pytest.raises(CanaryFileError, match=re.escape(f"{path}, line 2: ")) as raised:
        read_canary_file(path)
    assert says in str(raised.value)


def test_a_file_that_is_missing_empty_or_repeats_an_id_says_so(tmp_path):
    with pytest.raises(CanaryFileError, match="cannot be read"):
        read_canary_file(tmp_path / "none.jsonl")
    with pytest.raises(CanaryFileError, match="holds no case"):
        read_canary_file(write(tmp_path, "", ""))
    with pytest.raises(CanaryFileError, match=r"line 2: the id 'a' comes twice"):
        read_canary_file(write(tmp_path, {**LINE, "id": "a"}, {**LINE, "id": "a"}))
    with pytest.raises(ValueError, match="no range"):
        Canary("x", CLEAN[0].script, CLEAN[0].history, {"safety": (0, 3)})


# -- another process --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served():
    """`verl-steer serve microworld` in another process; its URL."""
    pytest.importorskip("fastapi", reason="the server needs the extra cpu")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "verl_steer.cli", "serve", "microworld", "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
            assert server.poll() is None, "the server ended"
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


async def test_the_served_micro_world_passes_through_prompt_http_and_reply(served):
    config = TutorConfig(model="microworld-tutor", base_urls=(served,), timeout_s=120)
    tutor, done = EndpointTutor(config, max_concurrency=4), []
    answers = await ask_all(tutor, ALL, concurrency=4, deadline_s=120, done=lambda: done.append(1))
    await tutor.aclose()
    found = report("built-in", answers)
    assert (found.failures, len(done), found.clean_outcomes) == ([], len(ALL), {"ok": 39})
    # Its verdicts hold 3 % of noise, the same for a case and its variants: nothing but noise is off.
    assert found.agreement["safety"].kappa > 0.8 and found.steering["all"].safety_up == 0


async def test_a_server_that_is_gone_gives_failed_calls_and_no_low_scores():
    config = TutorConfig(model="m", base_urls=("http://127.0.0.1:9",), timeout_s=5, attempts=1)
    tutor = EndpointTutor(config, max_concurrency=4, backoff_s=0.01)
    answers = await ask_all(tutor, ALL[:4], concurrency=4, deadline_s=5)
    await tutor.aclose()
    found = report("built-in", answers)
    assert set(found.clean_outcomes) <= {"failed", "timeout"} and found.agreement["safety"].cases == 0
    assert "0 of 4 clean cases" in found.failures[0]
