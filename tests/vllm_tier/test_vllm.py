"""A real vLLM: as the tutor's server, and as verl's own rollout. Run by `bash tests/run.sh --vllm`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from main_ppo import SMALL, main_ppo, series
from tiny_model import build_tiny_vlm
from vllm_server import BLOCK_TOKENS, ENVIRONMENT, VllmServer

from verl_steer.chat.outcome import Outcome
from verl_steer.chat.structured import Dialect, parse_reply, request_fields, schema_of
from verl_steer.config import TutorConfig
from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.plugin.sample import sample_image
from verl_steer.records import read_records
from verl_steer.roles.endpoint_tutor import EndpointTutor
from verl_steer.roles.layout import render
from verl_steer.roles.tutor import Assessment, Exchange, TutorRequest
from verl_steer.roles.tutor_reply import TutorReply

pytestmark = pytest.mark.vllm

CALL_LIMIT_S = 120.0
# A worker that raises while it receives weights leaves the trainer waiting for ever.
TRAINING_LIMIT_S = 900.0


def _script(kind: Kind = Kind.RED_TEAM, seed_id: str = "seed") -> Script:
    turns = (UserTurn("What does the sign say?", (sample_image(),)), UserTurn("And the other one?"), UserTurn("Why?"))
    return Script(seed_id, kind, turns)


def _request(*replies: str, script: Script | None = None, fence: str = "tag-one", key: str = "key") -> TutorRequest:
    """The tutor's task after `replies`; questions as planned."""
    script = script or _script()
    history = tuple(Exchange(turn.text, reply, turn.images) for turn, reply in zip(script.turns, replies, strict=False))
    planned = script.turns[len(replies)] if len(replies) < len(script.turns) else None
    return TutorRequest(script, history, planned, True, key, fence, CALL_LIMIT_S)


def _tutor(server: VllmServer, dialect: str = "auto") -> EndpointTutor:
    config = TutorConfig(
        kind="endpoint",
        model=server.model,
        base_urls=(server.base_url,),
        structured_output=dialect,
        temperature=1.0,
        timeout_s=CALL_LIMIT_S,
    )
    return EndpointTutor(config, max_concurrency=8)


async def _assess(server: VllmServer, request: TutorRequest, dialect: str = "auto") -> Assessment:
    tutor = _tutor(server, dialect)
    try:
        return await tutor.assess(request)
    finally:
        await tutor.aclose()


def _complete(server: VllmServer, request: TutorRequest, **fields: Any) -> dict[str, Any]:
    """One raw chat completion, without our client; the first choice."""
    body = {"model": server.model, "messages": render(request), "max_tokens": 1024, "temperature": 1.0, "seed": 3}
    response = httpx.post(f"{server.base_url}/chat/completions", json=body | fields, timeout=CALL_LIMIT_S)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


# -- the tutor's server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["response_format", "structured_outputs", "guided_json", "auto"])
async def test_an_assessment_of_a_reply_to_a_picture_is_schema_true_in_each_dialect(
    tutor_server: VllmServer, dialect: str
) -> None:
    assessment = await _assess(tutor_server, _request("It says: no entry.", key=dialect), dialect)
    assert assessment.verdict.outcome is Outcome.OK, assessment.verdict.reason
    assert assessment.verdict.scores is not None
    assert 6 <= assessment.verdict.scores.safety <= 8, "all that this model's weights allow"
    assert assessment.prompt_tokens > 4000 and assessment.completion_tokens > 0


async def test_a_picture_reaches_the_model(tutor_server: VllmServer) -> None:
    seen = await _assess(tutor_server, _request("It says: no entry."))
    turns = (UserTurn(_script().turns[0].text), *_script().turns[1:])
    blind = await _assess(tutor_server, _request("It says: no entry.", script=Script("seed", Kind.RED_TEAM, turns)))
    # 112 x 112 pixels, a token for 28 x 28 of them, between two markers.
    assert seen.prompt_tokens - blind.prompt_tokens == 16 + 2


@pytest.mark.parametrize("dialect", [Dialect.RESPONSE_FORMAT, Dialect.STRUCTURED_OUTPUTS])
def test_the_server_itself_enforces_the_schema_in_both_dialects(tutor_server: VllmServer, dialect: Dialect) -> None:
    choice = _complete(tutor_server, _request("It says: no entry."), **request_fields(dialect, schema_of(TutorReply)))
    assert choice["finish_reason"] == "stop"
    parse_reply(choice["message"]["content"], TutorReply)


def test_guided_json_alone_is_ignored_without_an_error(tutor_server: VllmServer) -> None:
    request, schema = _request("It says: no entry."), schema_of(TutorReply)
    with_field = _complete(tutor_server, request, guided_json=schema.schema)
    without = _complete(tutor_server, request)
    assert with_field["message"]["content"] == without["message"]["content"], "same seed: the field changed nothing"
    assert not with_field["message"]["content"].lstrip().startswith("{")
    assert "response_format" in request_fields(Dialect.GUIDED_JSON, schema), "so ours never goes alone"


async def test_a_tutor_that_is_asked_without_a_schema_and_rambles_gives_no_scores(tutor_server: VllmServer) -> None:
    assessment = await _assess(tutor_server, _request("It says: no entry."), "none")
    assert assessment.verdict.outcome is Outcome.UNPARSEABLE
    assert assessment.verdict.scores is None and assessment.calls == 2


async def test_a_model_the_server_does_not_offer_is_named_before_anything_is_asked(tutor_server: VllmServer) -> None:
    config = TutorConfig(kind="endpoint", model="tutr", base_urls=(tutor_server.base_url,))
    tutor = EndpointTutor(config, max_concurrency=1)
    try:
        fault = await tutor.ping()
    finally:
        await tutor.aclose()
    assert fault is not None and "did you mean tutor?" in fault


# -- the prefix cache --------------------------------------------------------------------------------------


def _tokens(server: VllmServer, request: TutorRequest) -> list[int]:
    """The prompt's tokens as the server sees them, by transformers' own processor."""
    import io

    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(server.folder)
    images = [Image.open(io.BytesIO(i.data)).convert("RGB") for e in request.history for i in e.images]
    text = processor.apply_chat_template(_for_template(render(request)), tokenize=False, add_generation_prompt=True)
    ids: list[int] = processor(text=[text], images=images or None)["input_ids"][0]
    return list(ids)


def _for_template(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's content parts as transformers' templates name them."""
    return [
        m
        if isinstance(m["content"], str)
        else m | {"content": [{"type": "image"} if p["type"] == "image_url" else p for p in m["content"]]}
        for m in messages
    ]


def _shared_blocks(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens of the longest common prefix that fill whole blocks."""
    shared = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return shared // BLOCK_TOKENS * BLOCK_TOKENS


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(("A rather different answer.",), id="sibling"),
        pytest.param(("It says: no entry.", "A stop sign."), id="next-turn"),
    ],
)
async def test_what_siblings_and_turns_share_is_computed_once(
    tutor_server: VllmServer, second: tuple[str, ...]
) -> None:
    fence = f"tag-{len(second)}"  # no other test has asked about this dialogue
    first, then = _request("It says: no entry.", fence=fence), _request(*second, fence=fence)
    await _assess(tutor_server, first)
    before = tutor_server.prefix_cache()
    assessment = await _assess(tutor_server, then)
    used = tutor_server.prefix_cache().since(before)

    tokens = _tokens(tutor_server, then)
    assert assessment.calls == 1 and used.queried == assessment.prompt_tokens == len(tokens)
    assert used.hit == _shared_blocks(_tokens(tutor_server, first), tokens)
    print(f"{used.hit} of {used.queried} prompt tokens came from the cache")
    assert used.hit > 0.9 * used.queried, "all but the newest exchange and the task"


async def test_another_seed_shares_the_rubric_and_nothing_of_the_dialogue(tutor_server: VllmServer) -> None:
    await _assess(tutor_server, _request("It says: no entry.", fence="tag-b"))
    other = _request("It says: no entry.", fence="tag-never-seen", script=_script(seed_id="other"))
    before = tutor_server.prefix_cache()
    await _assess(tutor_server, other)
    hit = tutor_server.prefix_cache().since(before).hit
    tokens = _tokens(tutor_server, other)
    tag_at = _tokens(tutor_server, _request("", fence="another", script=_script(seed_id="other")))
    rubric = _shared_blocks(tokens, tag_at)
    assert hit == rubric > 4000


# -- verl's own vLLM rollout -------------------------------------------------------------------------------


def test_a_rollout_server_computes_with_the_weights_it_was_sent_and_others_stay_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from vllm.model_executor.layers import utils
    from vllm_cpu_plugin import live_weights

    packed = utils.dispatch_cpu_unquantized_gemm
    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", packed)  # put back afterwards
    torch.manual_seed(0)
    x = torch.randn(3, 64)

    def follows_an_update() -> bool:
        layer = torch.nn.Linear(64, 128, bias=False).requires_grad_(False)
        # The lm_head's way: vLLM keeps its parameter, so an update finds it and raises nothing.
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        layer.weight.copy_(torch.randn(128, 64))
        return torch.allclose(layer.cpu_linear(x, layer.weight, None), x @ layer.weight.T, atol=1e-4)

    monkeypatch.delenv("VERL_REPLICA_RANK", raising=False)
    live_weights.register()
    assert not follows_an_update(), "vLLM's CPU build follows updates by itself now: the plugin can go"
    monkeypatch.setenv("VERL_REPLICA_RANK", "0")
    live_weights.register()
    assert follows_an_update()


def _picture(side: int) -> ImageRef:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "PNG")
    return ImageRef(buffer.getvalue())


def _scripts() -> list[Script]:
    """8 scripts of 2 and 3 turns: pictures in the first turn, two at once, in the second turn, and none."""
    small, large = _picture(56), _picture(84)
    shown = [((), ()), ((small,), ()), ((large, small), ()), ((), (small,))]
    return [
        Script(
            f"seed-{n}",
            Kind.BENIGN if n == 0 else Kind.RED_TEAM,
            (UserTurn(f"question {n}", first), UserTurn("and then?", second), UserTurn("why?"))[: 2 + n % 2],
        )
        for n, (first, second) in enumerate(shown * 2)
    ]


def test_two_steps_through_verls_own_vllm_rollout_agree_with_the_trainer(
    tutor_server: VllmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tiny_vlm(tmp_path / "student")
    scripts = _scripts()
    write_rows([script_to_row(script, n, "rl") for n, script in enumerate(scripts)], tmp_path / "rl.parquet")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    before = tutor_server.prefix_cache()

    status, output = main_ppo(
        tmp_path,
        "+recipe=steer_grpo",
        *SMALL,
        f"actor_rollout_ref.model.path={tmp_path}/student",
        f"data.train_files={tmp_path}/rl.parquet",
        f"data.val_files={tmp_path}/rl.parquet",
        f"trainer.default_local_dir={tmp_path}/out",
        "trainer.total_training_steps=2",
        # Step 1 must move the policy by far more than the bound: a server that kept its old weights then shows.
        "actor_rollout_ref.actor.optim.lr=5e-3",
        "steer.tutor.kind=endpoint",
        f"steer.tutor.model={tutor_server.model}",
        f"steer.tutor.base_urls=[{tutor_server.base_url}]",
        "steer.tutor.temperature=1.0",
        "steer.tutor.max_question_chars=12",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.enforce_eager=true",
        "+actor_rollout_ref.rollout.enable_sleep_mode=false",
        "actor_rollout_ref.rollout.gpu_memory_utilization=0.1",
        "actor_rollout_ref.rollout.max_model_len=1024",
        "actor_rollout_ref.rollout.max_num_batched_tokens=1024",
        "actor_rollout_ref.rollout.max_num_seqs=16",
        # As in vllm_server.py: a seeded request whose prompt is prefilled in pieces kills a CPU engine.
        "actor_rollout_ref.rollout.enable_chunked_prefill=false",
        timeout_s=TRAINING_LIMIT_S,
    )

    assert status == 0, output[-6000:]
    differences = series(output, "training/rollout_probs_diff_max")
    assert len(differences) == 2
    # verl masks out-of-vocabulary and image tokens before vLLM's softmax, and the trainer does not.
    assert all(0 < difference <= 2e-4 for difference in differences)
    # Step 2 says something about the transfer of weights only if step 1 has changed them.
    gradients = series(output, "actor/grad_norm")
    assert len(gradients) == 2 and all(math.isfinite(g) and g > 0 for g in gradients)

    records = list(read_records(tmp_path / "out" / "records", "train"))
    assert sorted(r["seed_id"] for r in records) == sorted([s.seed_id for s in scripts] * 2), "n = 2 of every seed"
    lengths = {script.seed_id: len(script.turns) for script in scripts}
    assert all(len(r["turns"]) == lengths[r["seed_id"]] and r["cut"] is None for r in records)
    turns = [turn for record in records for turn in record["turns"]]
    assert {turn["outcome"] for turn in turns} <= set(Outcome), "every turn has an outcome on record"
    assert all(turn["tutor_calls"] >= 1 for turn in turns)
    assert sum(turn["outcome"] == "ok" for turn in turns) >= 0.9 * len(turns)
    assert {t["strategy"] for t in turns} - {"script"}, "the tutor has written questions of its own"
    used = tutor_server.prefix_cache().since(before)
    assert used.hit >= 0.8 * used.queried, "the rubric and a seed's earlier turns were computed once"
