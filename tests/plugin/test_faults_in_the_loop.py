"""The real agent loop against a tutor that fails by plan: what retries cure leaves no trace, what stays is missing.

One step of the micro-world: a deterministic student, the rule tutor behind HTTP, frozen seeds. Records are
compared after taking out two fields of a turn, and no others: `latency_s`, which is wall time, and
`tutor_calls`, which counts the requests and must differ where a request was repeated. The limits of calls and
dialogues run on a clock that leaves out a machine's stalls (`steady_clock.py`): a stall is no fault of the plan.
"""

import asyncio
import hashlib
import itertools
import json
import random
import time
from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")
from omegaconf import OmegaConf
from steady_clock import steady
from tiny_model import build_tiny_vlm
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.utils.tokenizer import hf_processor, hf_tokenizer

from verl_steer.chat import endpoints, outage
from verl_steer.config import SteerConfig, TutorConfig
from verl_steer.data.rows import script_to_row
from verl_steer.microworld.lexicon import SHAPES, words_of_charm
from verl_steer.microworld.scripts import generate
from verl_steer.microworld.tutor import MicroworldTutor
from verl_steer.microworld.tutor_server import reply_text, request_of
from verl_steer.plugin import settings as settings_module
from verl_steer.plugin.agent_loop import SteerAgentLoop
from verl_steer.plugin.dataset import SteerDataset
from verl_steer.plugin.settings import Settings
from verl_steer.records import build_record, dialogue_from_dict, score_to_dict
from verl_steer.roles.endpoint_tutor import EndpointTutor
from verl_steer.roles.layout import parse
from verl_steer.tcsr import score_dialogue
from verl_steer.testing.faults import CURABLE, Fault, FaultPlan, faulty, strike
from verl_steer.testing.server import Completion, error, serve

SCRIPTS, SESSIONS = generate("rl", 11, 3), 2
WAITS = (Fault.HANG, Fault.SLOW_HEADERS, Fault.SLOW_BODY)  # cured by the limit of an attempt: half the call's time
NOT_COMPARED = ("latency_s", "tutor_calls")


def rule_tutor(body):
    return Completion(reply_text(MicroworldTutor().judge(request_of(parse(body["messages"]), body["seed"]))))


class Student:
    """Plays verl's LLM server: what it says depends on the prompt and the request's seed alone."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    async def generate(self, *, request_id, prompt_ids, sampling_params, image_data, mm_processor_kwargs):
        stem = json.dumps([list(prompt_ids), sampling_params["seed"]]).encode()
        chance = random.Random(hashlib.sha256(stem).hexdigest())
        said = chance.choice(["i will not say that", "it is open", " ".join(words_of_charm(chance.choice(SHAPES)))])
        ids = [*self.tokenizer.encode(said, add_special_tokens=False), self.tokenizer.eos_token_id]
        ids = ids[: sampling_params["max_tokens"]]
        return SimpleNamespace(
            token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields={"min_global_steps": 1, "max_global_steps": 1}
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = str(build_tiny_vlm(tmp_path_factory.mktemp("student") / "tiny"))
    return hf_tokenizer(path), hf_processor(path)


@pytest.fixture
def step(model, monkeypatch):
    tokenizer, processor = model

    async def run(handler, timeout_s=120.0, min_scored=1.0, deadline_s=1800.0, scripts=SCRIPTS):
        with serve(handler) as server:
            node = {"kind": "endpoint", "model": "tutor", "base_urls": (server.base_url,), "timeout_s": timeout_s}
            dialogue = {"min_scored": min_scored, "deadline_s": deadline_s}
            steer = SteerConfig.from_mapping({"seed": 3, "tutor": node, "dialogue": dialogue})
            tutor = EndpointTutor(TutorConfig(**node), max_concurrency=8, backoff_s=0.01, outage_s=600)
            rollout = {"prompt_length": 400, "response_length": 1200, "agent": {"num_workers": 1}}
            config = OmegaConf.create(
                {
                    "actor_rollout_ref": {"rollout": rollout},
                    "data": {"apply_chat_template_kwargs": {}, "mm_processor_kwargs": {}},
                }
            )
            monkeypatch.setitem(settings_module._by_config, id(config), (config, Settings(steer, tutor, b"key")))

            async def play(n, script, session):
                loop = SteerAgentLoop(
                    trainer_config=DictConfigWrap(config),
                    server_manager=Student(tokenizer),
                    tokenizer=tokenizer,
                    processor=processor,
                    dataset_cls=SteerDataset,
                    data_config=DictConfigWrap(config.data),
                    hf_model_type="qwen2_5_vl",
                )
                row = script_to_row(script, n, "rl")
                row |= {"raw_prompt": row.pop("prompt"), "session_id": session, "global_steps": 1, "uid": str(n)}
                output = await loop.run({"temperature": 1.0, "top_p": 1.0}, **row)
                fields = output.extra_fields["steer"]
                score = score_dialogue(dialogue_from_dict(fields["dialogue"]), steer.reward.resolve(), min_scored)
                record = build_record({**fields["context"], "step": 1}, fields["dialogue"], score_to_dict(score))
                return record, output.response_ids, output.response_mask

            plays = [play(n, script, s) for n, script in enumerate(scripts) for s in range(SESSIONS)]
            async with steady():
                found = await asyncio.gather(*plays)
                await tutor.aclose()
        return found, server

    return run


def compared(found):
    """Bytes of everything but `NOT_COMPARED`; the turns first, where a difference begins."""
    lines = []
    for record, ids, mask in found:
        turns = [{k: v for k, v in t.items() if k not in NOT_COMPARED} for t in record["turns"]]
        whole = {k: record[k] for k in sorted(record) if k != "turns"}
        lines.append(json.dumps({"turns": turns, **whole, "ids": list(ids), "mask": list(mask)}))
    return lines


def difference(found, expected):
    """The first dialogue that differs and its first differing fields, "" if none does."""
    for n, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            where = list(itertools.islice(walk(json.loads(one), json.loads(other)), 6))
            return f"dialogue {n}: " + ("; ".join(where) or "the same fields in another order")
    return ""


def walk(one, other, place=""):
    """Every place at which two JSON values differ, and what is there."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from walk(one.get(key, "(absent)"), other.get(key, "(absent)"), f"{place}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{place} has {len(one)} entries instead of {len(other)}"
        for n, pair in enumerate(zip(one, other, strict=False)):
            yield from walk(*pair, f"{place}[{n}]")
    elif one != other:
        yield f"{place} is {one!r} instead of {other!r}"


async def test_the_step_itself_is_deterministic_and_not_trivial(step):
    one, _ = await step(rule_tutor)
    two, _ = await step(rule_tutor)
    assert not difference(compared(two), compared(one))
    turns = [t for record, *_ in one for t in record["turns"]]
    assert len({t["scores"]["safety"] for t in turns}) >= 3 and len({t["strategy"] for t in turns}) >= 2
    assert len({r["return"] for r, *_ in one}) > 3
    assert difference(compared(one), compared([*one[1:], one[0]])), "the comparison can fail"
    record, ids, mask = one[1]
    turns = [*record["turns"][:-1], {**record["turns"][-1], "outcome": "timeout"}]
    says = difference(compared([one[0], ({**record, "turns": turns}, ids, [*mask, 0]), *one[2:]]), compared(one))
    last = len(turns) - 1
    assert says.startswith(f"dialogue 1: turns[{last}].outcome is 'timeout' instead of 'ok'; mask has"), says


@pytest.mark.parametrize("fault", CURABLE)
async def test_a_fault_that_retries_cure_leaves_the_records_bit_equal(step, fault):
    clean, _ = await step(rule_tutor)
    plan = FaultPlan(seed=1, rate=0.15 if fault in WAITS else 1.0, faults=[fault], tries=1, hang_s=200.0)
    cured, server = await step(faulty(rule_tutor, plan), timeout_s=6.0 if fault in WAITS else 120.0)
    assert not difference(compared(cured), compared(clean))
    calls = sum(t["tutor_calls"] for record, *_ in cured for t in record["turns"])
    turns = sum(len(record["turns"]) for record, *_ in cured)
    # Nothing asks behind the count's back; a request that a lost connection swallowed is counted and never came.
    assert plan.hits[fault] >= 3 and calls >= len(server.requests) >= turns + plan.hits[fault]


async def test_all_curable_faults_together_and_twice_in_a_row_leave_the_records_bit_equal(step):
    clean, _ = await step(rule_tutor)
    quick = [f for f in CURABLE if f not in WAITS]
    plan = FaultPlan(seed=2, rate=0.8, faults=quick, tries=2)
    cured, _ = await step(faulty(rule_tutor, plan), timeout_s=120.0)
    assert not difference(compared(cured), compared(clean))
    assert len(plan.hits) >= 8, plan.hits


async def test_an_outage_longer_than_a_dialogues_deadline_leaves_the_records_bit_equal(step, monkeypatch):
    monkeypatch.setattr(endpoints, "SICK_FAILURES", 3)
    monkeypatch.setattr(endpoints, "SICK_S", 0.2)
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(outage, "MAX_PAUSE_S", 0.5)
    clean, _ = await step(rule_tutor, scripts=SCRIPTS[:1])
    began = []

    def comes_back_late(body):
        began.append(time.monotonic())
        gone = began[-1] - began[0] < 14.0
        return error(503, "no backend") if gone else rule_tutor(body)

    waited, server = await step(comes_back_late, timeout_s=8.0, deadline_s=10.0, scripts=SCRIPTS[:1])
    assert not difference(compared(waited), compared(clean)) and {record["cut"] for record, *_ in waited} == {None}
    assert began[-1] - began[0] >= 14.0 and len(server.requests) < 80, "and the server was not stormed meanwhile"


def permanently(plan, hit):
    """`rule_tutor` under `plan`, whose choice looks at what was said alone.

    So a repair meets what the first try met, and two rollouts that said the same, whose prompts differ in the tag of
    their fences, are hit alike: `hit` can name a place by what was said.
    """

    def answer(body):
        asked = parse(body["messages"])
        place = (asked.history[0].images[0].sha256, *((e.question, e.reply) for e in asked.history))
        fault = plan.draw({"said": place})
        hit[place] = fault
        clean = rule_tutor(body)
        return clean if fault is None else strike(fault, clean, body, plan)

    return answer


@pytest.mark.parametrize("min_scored", [1.0, 0.0])
async def test_faults_that_stay_are_missing_data_as_planned_and_never_a_number(step, min_scored):
    clean, _ = await step(rule_tutor, min_scored=min_scored)
    hit = {}
    plan = FaultPlan(seed=4, rate=0.3, hang_s=60.0)  # slow headers outlast an attempt too
    broken, _ = await step(permanently(plan, hit), timeout_s=6.0, min_scored=min_scored)
    assert len(plan.hits) >= 4, "several kinds of fault struck"
    seen = Counter()
    for (record, *_), (intact, *_) in zip(broken, clean, strict=True):
        places = [
            (record["turns"][0]["images"][0], *((t["asked"], t["reply"]) for t in record["turns"][: n + 1]))
            for n in range(len(record["turns"]))
        ]
        faults = [hit[place] for place in places]
        planned = [fault is not None for fault in faults]
        for t, (turn, is_hit) in enumerate(zip(record["turns"], planned, strict=True)):
            seen[is_hit] += 1
            unscored = turn["scores"] is None
            assert unscored is is_hit is (turn["outcome"] != "ok"), f"unscored exactly as planned: {faults[t]}"
            assert (turn["reward"] is None) is is_hit, "no invented number"
            if is_hit and t + 1 < len(record["turns"]):
                nxt = record["turns"][t + 1]
                assert (nxt["asked"], nxt["strategy"]) == (nxt["planned"], "script"), "the planned question stands in"
        first = planned.index(True) if any(planned) else len(planned)
        for t in range(first):
            same = [{k: v for k, v in r["turns"][t].items() if k not in NOT_COMPARED} for r in (record, intact)]
            keys = set(same[0]) - {"placed"} if any(planned) else set(same[0])  # a return's share knows the whole
            assert {k: same[0][k] for k in keys} == {k: same[1][k] for k in keys}, "equal up to the first fault"
        if first < len(planned):
            assert record["turns"][first]["reply"] == intact["turns"][first]["reply"]
        assert record["scored_fraction"] == pytest.approx(planned.count(False) / len(planned))
        expected = by_hand([t["scores"] and t["scores"]["safety"] for t in record["turns"]])
        masked = any(planned) if min_scored == 1.0 else all(planned)
        assert record["masked"] is masked
        assert record["return"] is None if masked else record["return"] == pytest.approx(expected)
    assert seen[True] >= 5 and seen[False] >= 5


def by_hand(safety, alpha=0.3):
    """TCSR of the paper's preset with carried values: R = T x mean of the shaped rewards that exist."""
    shaped, known = [], []
    for s in safety:
        if s is not None:
            known.append((s - 1) / 9)
        if known:
            shaped.append(alpha * min(known) + (1 - alpha) * sum(known) / len(known))
    return len(safety) * sum(shaped) / len(shaped) if shaped else 0.0
