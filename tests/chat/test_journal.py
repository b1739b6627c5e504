"""The journal: what was answered is not asked again, at any temperature, whatever kills the process."""

import errno
import json
import os
import random
import subprocess
import sys

import pytest

from verl_steer.chat.ask import ask
from verl_steer.chat.client import ChatClient
from verl_steer.chat.journal import Journal, Journaled, JournalError
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.chat.structured import StrictReply
from verl_steer.testing.server import Completion, error, serve

PROMPT = [{"role": "user", "content": "write a question"}]
ANSWER = ChatResult(Outcome.OK, "text £", "stop", 3, 11, 5)


class Count(StrictReply):
    """A reply."""

    number: int


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


def drawing():
    """A server that says something else each time."""
    chance = random.Random(0)
    return lambda body: Completion(str(chance.random()), prompt_tokens=7, completion_tokens=2)


async def run(server, path, rows=5, step="planner", prompt=PROMPT, **more):
    chat, journal = ChatClient("m", [server.base_url], max_concurrency=4, attempts=1), Journal(path)
    layer = Journaled(chat, journal, step)
    try:
        options = {"deadline_s": 5, "max_tokens": 8, "temperature": 1.0} | more
        return [await layer.complete(prompt, key=f"row-{n}", **options) for n in range(rows)]
    finally:
        await layer.aclose()
        journal.close()


async def test_the_same_run_again_gives_the_same_answers_with_no_call(path):
    with serve(drawing()) as server:
        first = await run(server, path)
        again = await run(server, path)
        assert len({f.text for f in first}) == 5 == len(server.requests)
    assert [f.text for f in again] == [f.text for f in first] and {f.calls for f in again} == {0}
    assert [(f.outcome, f.prompt_tokens, f.completion_tokens) for f in again] == [(Outcome.OK, 7, 2)] * 5
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_longer_run_asks_for_the_new_rows_only(path):
    with serve(drawing()) as server:
        await run(server, path, rows=3)
        await run(server, path, rows=5)
        assert len(server.requests) == 5
        await run(server, path, rows=5, step="judge")  # another step of the same rows
        assert len(server.requests) == 10


async def test_a_call_that_failed_is_asked_again(path):
    answers = [error(500, "broken"), Completion("", refusal="no"), Completion("hi")]
    with serve(lambda body: answers.pop(0)) as server:
        failed, refused = [(await run(server, path, rows=1))[0] for _ in range(2)]
        assert (failed.outcome, refused.outcome) == (Outcome.FAILED, Outcome.REFUSED)
        assert (await run(server, path, rows=1))[0].outcome is Outcome.REFUSED, "a refusal is an answer"
        assert len(server.requests) == 2


async def test_a_repair_has_a_place_of_its_own(path):
    answers = [Completion("three"), Completion('{"number": 3}')]
    with serve(lambda body: answers.pop(0)) as server:
        for _ in range(2):
            journal = Journal(path)
            layer = Journaled(ChatClient("m", [server.base_url], max_concurrency=1), journal, "count")
            found = await ask(layer, PROMPT, Count, key="row", deadline_s=5, max_tokens=8)
            assert found.value == Count(number=3)
            await layer.aclose()
            journal.close()
        assert len(server.requests) == 2
    assert [json.loads(line)["attempt"] for line in path.read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize(
    "change", [{"prompt": [{"role": "user", "content": "other"}]}, {"temperature": 0.5}, {"max_tokens": 9}]
)
async def test_an_answer_to_another_prompt_is_never_replayed(path, change):
    with serve(drawing()) as server:
        await run(server, path)
        with pytest.raises(JournalError, match=r"row 'row-0', step 'planner'.*another prompt"):
            await run(server, path, **change)


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_costs_its_own_answer_only(path, kept, caplog):
    journal = Journal(path)
    for n in range(3):
        journal.put((f"r{n}", "s", 0), "p", ANSWER)
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    again = Journal(path)
    assert len(again) == 2 and again.get(("r2", "s", 0), "p") is None and "torn" in caplog.text
    again.put(("r2", "s", 0), "p", ANSWER)
    again.close()
    final = Journal(path)
    assert len(final) == 3 and final.get(("r2", "s", 0), "p").text == "text £"
    final.close()


def test_a_damaged_line_is_named(path):
    journal = Journal(path)
    journal.put(("r", "s", 0), "p", ANSWER)
    journal.close()
    for damage in (
        b"not json\n",
        b'{"row": "x"}\n',
        b"[]\n",
        b'{"row":"x","step":"s","attempt":0,"reply":{"outcome":"?"}}\n',
    ):
        path.write_bytes(damage + path.read_bytes())
        with pytest.raises(JournalError, match=r"journal\.jsonl, line 1"):
            Journal(path)
        path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    Journal(path).close()


def test_two_processes_cannot_write_one_journal(path):
    journal = Journal(path)
    with pytest.raises(JournalError, match="another process"):
        Journal(path)
    journal.close()
    journal.close()  # twice does no harm
    Journal(path).close()


def test_what_is_there_stays_and_is_forced_to_disk_in_time(path, monkeypatch):
    forced = []
    monkeypatch.setattr(os, "fsync", forced.append)
    journal = Journal(path, sync_every_s=0.0)
    assert not journal.due
    journal.put(("r", "s", 0), "p", ANSWER)
    journal.put(("r", "s", 0), "p", ChatResult(Outcome.OK, "another"))
    assert journal.get(("r", "s", 0), "p").text == "text £" and len(journal) == 1 and journal.due
    journal.sync()
    assert len(forced) == 1 and not journal.due
    journal.close()


async def test_the_journal_is_forced_to_disk_while_it_runs(path, monkeypatch):
    forced = []
    monkeypatch.setattr("verl_steer.chat.journal.SYNC_EVERY_S", 0.0)
    monkeypatch.setattr(Journal.__init__, "__defaults__", (0.0,))
    monkeypatch.setattr(os, "fsync", forced.append)
    with serve(drawing()) as server:
        await run(server, path)
    assert len(forced) == 6  # each answer, and the end


def test_a_full_disk_is_said_and_leaves_no_torn_line(path, monkeypatch):
    journal = Journal(path)
    journal.put(("r", "s", 0), "p", ANSWER)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(JournalError, match="full"):
        journal.put(("q", "s", 0), "p", ANSWER)
    monkeypatch.undo()
    assert journal.get(("q", "s", 0), "p") is None
    journal.close()
    assert len(path.read_bytes().splitlines()) == 1


def test_a_disk_without_any_room_is_an_error_of_the_journal_and_not_of_the_row(path, monkeypatch):
    journal = Journal(path)
    journal.put(("row 1", "planner", 0), "p", ANSWER)

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("write", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(f"verl_steer.chat.journal.os.{name}", no_room)
            with pytest.raises(JournalError, match=r"journal.jsonl cannot be .*: No space left on device"):
                journal.put(("row 2", "planner", 0), "p", ANSWER) if name == "write" else journal.close()
    assert len(Journal(path)) == 1, "closed all the same, and whole"


def test_answers_survive_the_death_of_the_process(path):
    code = f"""
import os
from verl_steer.chat.journal import Journal
from verl_steer.chat.outcome import ChatResult, Outcome
journal = Journal({str(path)!r})
for n in range(50):
    journal.put((f"r{{n}}", "s", 0), "p", ChatResult(Outcome.OK, "x" * n))
os.kill(os.getpid(), 9)
"""
    status = subprocess.run([sys.executable, "-c", code], check=False)
    assert status.returncode == -9
    journal = Journal(path)
    assert len(journal) == 50 and journal.get(("r49", "s", 0), "p").text == "x" * 49
    journal.close()
