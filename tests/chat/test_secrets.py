"""A planted API key: used, and written nowhere, whatever goes wrong."""

import asyncio
import contextlib
import dataclasses
import io
import json
import logging

import pytest

from verl_steer.chat import endpoints, outage
from verl_steer.chat.audit import Audited, AuditLog
from verl_steer.chat.cache import Cached, ReplyCache
from verl_steer.chat.client import ChatClient
from verl_steer.chat.journal import Journal, Journaled
from verl_steer.chat.outage import ModelOutage
from verl_steer.config import SteerConfig
from verl_steer.dialogue import Dialogue, Kind, Script, Turn, UserTurn
from verl_steer.records import RecordWriter, build_record, dialogue_to_dict
from verl_steer.roles.build import build_tutor
from verl_steer.roles.tutor import Exchange, TutorRequest
from verl_steer.testing.faults import FaultPlan, faulty
from verl_steer.testing.server import Completion, Wire, error, serve

KEY = "sk-planted-51c0de77aa"
REPLY = {"reason": "r", "safety": 10, "usefulness": 9, "faithfulness": 8, "strategy": "none", "next_question": None}
TURNS = (UserTurn("one"), UserTurn("two"))


def request(n):
    script = Script(f"seed-{n}", Kind.RED_TEAM, TURNS)
    return TutorRequest(script, (Exchange("one", f"reply {n}"),), TURNS[1], True, f"{n}", "abcdefghij", 3.0)


def tells_tales(body):
    """What a careless server does: it quotes the key it was given, wherever it can."""
    at = sum(map(ord, str(body["messages"]))) % 5
    quoted = f"key Bearer {KEY} is not allowed"
    told = json.dumps({"choices": [{"message": {"content": "", "refusal": quoted}, "finish_reason": "stop"}]})
    answers = [
        Completion(json.dumps(REPLY)),
        error(401, quoted),
        error(400, "x" * 280 + quoted),
        Wire(f"<html>{quoted}</html>".encode(), headers={"content-type": "text/html"}),
        Wire(told.encode()),
    ]
    return answers[at]


def written(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def test_the_whole_client_stack_writes_the_key_nowhere(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TUTOR_KEY", KEY)
    monkeypatch.setattr(endpoints, "SICK_FAILURES", 3)
    monkeypatch.setattr(endpoints, "SICK_S", 0.05)
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.02)
    caplog.set_level(logging.DEBUG)  # of httpx and httpcore too
    printed, used = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        for name, handler in {
            "tales": tells_tales,
            "faults": faulty(
                lambda body: Completion(json.dumps(REPLY)), FaultPlan(seed=1, rate=0.7, hang_s=5.0, huge_bytes=2**21)
            ),
            "gone": lambda body: error(503, f"no backend for {KEY}"),
        }.items():
            with serve(handler) as server:
                tutor_node = {
                    "kind": "endpoint",
                    "model": "tutor",
                    "base_urls": [server.base_url],
                    "api_key_env": "TUTOR_KEY",
                    "timeout_s": 1.0,
                    "attempts": 2,
                    "outage_s": 0.3,
                    "audit_dir": str(tmp_path / "audit"),
                    "fallback": {"model": "judge", "base_urls": [server.base_url], "api_key_env": "TUTOR_KEY"},
                }
                config = SteerConfig.from_mapping({"tutor": tutor_node})
                print(config, dataclasses.asdict(config))
                tutor, records = build_tutor(config.tutor, 4), []
                for n in range(6):
                    try:
                        found = await tutor.assess(request(n))
                    except ModelOutage as gone:
                        print(gone, repr(gone))
                        continue
                    print(found)
                    turn = Turn(TURNS[0], "one", f"reply {n}", found.verdict)
                    dialogue = Dialogue(request(n).script, 2, [turn])
                    records.append(build_record({"step": 1, "uid": str(n)}, dialogue_to_dict(dialogue), None))
                RecordWriter(tmp_path / "records" / name).write_step("train", 1, records)
                print(tutor, vars(tutor), [vars(v) for v in vars(tutor).values() if hasattr(v, "__dict__")])
                await tutor.aclose()

                journal, cache = Journal(tmp_path / f"{name}.jsonl"), ReplyCache(tmp_path / f"{name}.sqlite")
                client = ChatClient(
                    "m", [server.base_url], max_concurrency=2, attempts=2, api_key_env="TUTOR_KEY", backoff_s=0.01
                )
                layers = Journaled(Cached(Audited(client, AuditLog(tmp_path / "audit2")), cache), journal, "s")
                for n in range(6):
                    said = [{"role": "user", "content": f"q{n}"}]
                    print(await layers.complete(said, key=str(n), deadline_s=1.0, max_tokens=8))
                await layers.aclose()
                print(await client.models())
                await client.aclose()
                journal.close()
                cache.close()
                used += sum(h.get("authorization") == f"Bearer {KEY}" for h in server.headers)
    logging.getLogger().handlers[0].flush()
    files = written(tmp_path)
    assert used > 20, "the key was sent"
    assert len(files) >= 9 and any(b"***" in content for content in files.values()), "a quoted key was struck out"
    assert [name for name, content in files.items() if KEY.encode() in content] == []
    assert KEY not in caplog.text and KEY not in printed.getvalue() and len(printed.getvalue()) > 1000


def test_the_search_would_find_it(tmp_path):
    (tmp_path / "a").write_text(f"... {KEY} ...")
    assert any(KEY.encode() in content for content in written(tmp_path).values())


@pytest.mark.parametrize("key", ["tutor.api_key_env", "tutor.fallback.api_key_env", "fence_key_env"])
def test_a_secret_in_place_of_a_variables_name_is_refused_and_not_repeated(key):
    from verl_steer.config import ConfigError

    node = {"tutor": {"kind": "endpoint", "model": "m", "base_urls": ["http://t/v1"], "fallback": {}}}
    place = node
    *folders, last = key.split(".")
    for folder in folders:
        place = place[folder]
    place[last] = f"{KEY}"
    with pytest.raises(ConfigError) as raised:
        SteerConfig.from_mapping(node)
    assert KEY not in str(raised.value) and last in str(raised.value)


@pytest.mark.parametrize("key", ["EMPTY", "x", "token", "none"])
async def test_a_placeholder_for_a_key_may_be_a_word_of_the_reply(monkeypatch, key):
    monkeypatch.setenv("TUTOR_KEY", key)
    said = f"the word {key}, and x in {key}s"
    with serve(lambda body: Completion(said)) as server:
        client = ChatClient("tutor", [server.base_url], max_concurrency=1, api_key_env="TUTOR_KEY")
        found = await client.complete([{"role": "user", "content": "?"}], key="k", deadline_s=5.0, max_tokens=9)
        await client.aclose()
    assert found.text == said and found.completion_tokens > 0


@pytest.mark.parametrize("key", ["EMPTY", KEY])
async def test_an_error_never_quotes_a_key_whatever_its_length(monkeypatch, key):
    monkeypatch.setenv("TUTOR_KEY", key)
    for answer in (error(400, f"no such key: {key}"), Wire(f"<html>{key}</html>".encode())):
        with serve(lambda body, answer=answer: answer) as server:
            client = ChatClient("tutor", [server.base_url], max_concurrency=1, attempts=1, api_key_env="TUTOR_KEY")
            found = await client.complete([{"role": "user", "content": "?"}], key="k", deadline_s=5.0, max_tokens=9)
            await client.aclose()
        assert "***" in found.detail and key not in found.detail


ODD = 'sk-planted/51c0+de"77\\aa'  # signs that JSON may, or must, write as escapes


def once(text):
    return json.dumps(text)[1:-1]


SPELLINGS = {
    "python": once(ODD),
    "php": once(ODD).replace("/", r"\/"),
    "dotnet": once(ODD).replace("+", r"\u002B").replace(r"\"", r"\u0022"),
    "all": "".join(rf"\u{ord(sign):04x}" for sign in ODD),
    "json in json": once(once(ODD).replace("/", r"\/")),
    "json in json in json": once(once(once(ODD).replace("/", r"\/"))),
}


async def told(monkeypatch, key, url):
    """What a client with this key makes of a server: a call's result, and its models."""
    monkeypatch.setenv("TUTOR_KEY", key)
    client = ChatClient("tutor", [url], max_concurrency=1, attempts=1, api_key_env="TUTOR_KEY")
    found = await client.complete([{"role": "user", "content": "?"}], key="k", deadline_s=5.0, max_tokens=9)
    models = await client.models()
    await client.aclose()
    return found, models[url]


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize(
    "answer",
    [
        Wire(b'{"choices": [{"message": {"content": "the key KEY."}, "finish_reason": "stop"}]}'),
        Wire(b'{"choices": [{"message": {"content": "", "refusal": "the key KEY."}, "finish_reason": "stop"}]}'),
        Wire(b'{"error": "the key KEY."}', 400),
        Wire(b'{"broken": "the key KEY."'),
    ],
)
async def test_a_key_is_struck_however_json_spells_it(monkeypatch, spelled, answer):
    wire = dataclasses.replace(answer, body=answer.body.replace(b"KEY", spelled.encode()))
    with serve(lambda body: wire) as server:
        found, _ = await told(monkeypatch, ODD, server.base_url)
    said = found.text or found.detail
    assert "the key ***." in said and "planted" not in repr(found)


@pytest.mark.parametrize("key", [KEY, ODD])
async def test_a_header_that_is_none_gives_no_key_away(monkeypatch, key):
    async def broken(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nauthorization Bearer {key}\x1b[8m\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(broken, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        found, models = await told(monkeypatch, key, url)
    for said in (found.detail, models):
        assert "RemoteProtocolError" in said and "authorization Bearer ***" in said and "planted" not in said


async def test_a_list_of_models_gives_no_key_away_and_no_terminal_sequence(monkeypatch):
    listed = Wire(json.dumps({"data": [{"id": f"model of {ODD}"}, {"id": "\x1b[8mEMPTY-7b"}]}).encode())
    with serve(lambda body: Completion("hi"), models=listed) as server:
        assert (await told(monkeypatch, ODD, server.base_url))[1] == ["model of ***", "EMPTY-7b"]
        assert (await told(monkeypatch, "EMPTY", server.base_url))[1] == [f"model of {ODD}", "EMPTY-7b"]
