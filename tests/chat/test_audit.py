"""The audit log: cost and outcome of every call, and nothing that was said."""

import asyncio
import json

import pytest

from verl_steer.chat.audit import Audited, AuditLog, audit_log
from verl_steer.chat.client import ChatClient
from verl_steer.chat.content import digest_of
from verl_steer.testing.server import Completion, Wire, error, serve

SAID = "the words of the prompt"
PROMPT = [{"role": "user", "content": SAID}]


def lines(log):
    return [json.loads(line) for line in log.path.read_text().splitlines()]


async def test_a_line_a_call_with_its_cost_and_no_text(tmp_path):
    answers = [Completion("the words of the reply", prompt_tokens=12, completion_tokens=3), error(400, f"bad: {SAID}")]
    log = AuditLog(tmp_path / "audit")
    with serve(lambda body: answers.pop(0)) as server:
        layer = Audited(ChatClient("m", [server.base_url], max_concurrency=1, attempts=1), log)
        for attempt in range(2):
            await layer.complete(PROMPT, key="row", deadline_s=5, max_tokens=8, attempt=attempt)
        await layer.aclose()
    first, second = lines(log)
    assert first["time"] > 1e9 and 0 <= first["waited_s"] <= first["latency_s"] < 5
    known = {
        k: first[k] for k in ("model", "key", "attempt", "outcome", "requests", "prompt_tokens", "completion_tokens")
    }
    assert known == {
        "model": "m",
        "key": "row",
        "attempt": 0,
        "outcome": "ok",
        "requests": 1,
        "prompt_tokens": 12,
        "completion_tokens": 3,
    }
    assert first["endpoint"] == server.base_url and first["prompt_sha256"] == digest_of(PROMPT)
    assert (second["outcome"], second["attempt"]) == ("failed", 1)
    assert "words" not in log.path.read_text()
    assert log.path.stat().st_mode & 0o777 == 0o600 and log.path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_call_that_is_cancelled_is_logged_too(tmp_path):
    log = AuditLog(tmp_path)
    with serve(lambda body: Wire(delay_s=30)) as server:
        layer = Audited(ChatClient("m", [server.base_url], max_concurrency=1), log)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await layer.complete(PROMPT, key="row", deadline_s=5, max_tokens=8)
        await layer.aclose()
    assert [entry["outcome"] for entry in lines(log)] == ["cancelled or raised"]


def test_files_are_rotated_and_stay_private(tmp_path):
    log = AuditLog(tmp_path, max_bytes=2000, files=3)
    for n in range(200):
        log.write({"n": n, "pad": "x" * 40})
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 and all(f.stat().st_size <= 2000 and f.stat().st_mode & 0o777 == 0o600 for f in files)
    assert lines(log)[-1]["n"] == 199
    log.write({"n": 200})  # a log that was closed opens again
    assert lines(log)[-1]["n"] == 200
    log.close()


def test_a_process_has_one_log_a_folder(tmp_path):
    assert audit_log(str(tmp_path)) is audit_log(str(tmp_path))


async def test_a_full_disk_stops_no_call(tmp_path, capsys):
    log = AuditLog(tmp_path)
    with serve(lambda body: Completion("hi")) as server:
        layer = Audited(ChatClient("m", [server.base_url], max_concurrency=1), log)

        class Full:
            def write(self, text):
                raise OSError(28, "No space left on device")

            def flush(self):
                pass

            def close(self):
                pass

            def tell(self):
                return 0

            def seek(self, *where):
                return 0

        log._handler.stream = Full()
        found = await layer.complete(PROMPT, key="row", deadline_s=5, max_tokens=8)
        await layer.aclose()
    assert found.text == "hi" and "No space left" in capsys.readouterr().err
