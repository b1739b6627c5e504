"""Replies held to a JSON schema by a model that knows nothing: in this process, and behind the server."""

import asyncio
import json

import pytest
from bench_worlds import serving
from tiny_model import build_tiny_vlm
from tiny_tutor import build_tiny_tutor

from verl_steer.chat.client import ChatClient
from verl_steer.chat.outcome import Outcome
from verl_steer.chat.structured import parse_reply, schema_of
from verl_steer.local.chat import LocalChat
from verl_steer.local.server import create_app
from verl_steer.roles.tutor_reply import TutorReply

ASK = [{"role": "user", "content": "judge"}]
SCHEMA = {
    "type": "object",
    "properties": {"fair": {"type": "boolean"}, "level": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["fair", "level"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny_vlm(tmp_path_factory.mktemp("model"))


async def test_random_weights_follow_the_schema_and_free_rows_of_the_batch_stay_free(model):
    chat = LocalChat(model, "m", batch_size=8)
    try:
        alone = await chat.reply(ASK, 5, 24, 1.0)
        held = [chat.reply(ASK, seed, 60, 1.0, SCHEMA) for seed in range(6)]
        found = await asyncio.gather(*held, chat.reply(ASK, 5, 60, 1.0))
    finally:
        await chat.aclose()
    *held, free = found
    for reply in held:
        value = json.loads(reply.text)
        assert set(value) == {"fair", "level"} and type(value["fair"]) is bool and 1 <= value["level"] <= 9
        assert reply.finish_reason == "stop" and " " not in reply.text
    assert len({reply.text for reply in held}) > 1, "within the schema the weights and seeds decide"
    assert free.text.startswith(alone.text[:8]), "the free row says what it says alone"


async def test_a_schema_that_cannot_be_served_is_a_failed_call_and_says_so(model):
    chat = LocalChat(model, "m")
    try:
        found = await chat.reply(ASK, 0, 8, 0.0, {"type": "no such type"})
    finally:
        await chat.aclose()
    assert found.outcome is Outcome.FAILED and "the schema cannot be served" in found.detail


async def test_the_server_takes_response_format_and_refuses_other_forms_of_it(model, tmp_path):
    tutor = build_tiny_tutor(tmp_path / "tutor")
    with serving(create_app(LocalChat(tutor, "m"))) as url:
        client = ChatClient("m", [url], max_concurrency=4)
        call = {"deadline_s": 600.0, "max_tokens": 300, "temperature": 1.0}
        found = await asyncio.gather(
            *(client.complete(ASK, key=str(n), schema=schema_of(TutorReply), **call) for n in range(4))
        )
        await client.aclose()
        import httpx

        async with httpx.AsyncClient(timeout=60) as http:
            body = {"messages": ASK, "response_format": {"type": "json_object"}}
            refused = await http.post(f"{url}/chat/completions", json=body)
    assert [reply.outcome for reply in found] == [Outcome.OK] * 4
    assert all(json.loads(reply.text)["safety"] in range(1, 11) for reply in found)
    assert {parse_reply(reply.text, TutorReply).safety for reply in found} <= {6, 7, 8, 10}
    assert refused.status_code == 400 and "response_format must be of type" in refused.json()["error"]["message"]
