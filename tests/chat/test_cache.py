"""The cache: equal questions at temperature 0 are asked once, over runs and within one."""

import asyncio
import sqlite3
import subprocess
import sys
import time

import pytest

from verl_steer.chat import cache as cache_module
from verl_steer.chat.ask import ask
from verl_steer.chat.cache import Cached, CacheError, ReplyCache, disk_of
from verl_steer.chat.client import ChatClient
from verl_steer.chat.deadline import Deadline
from verl_steer.chat.journal import Journal, Journaled
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.chat.structured import JsonSchema, StrictReply
from verl_steer.testing.server import Completion, error, serve


class Length(StrictReply):
    """A reply."""

    length: int


def prompt(n):
    return [{"role": "user", "content": [{"type": "text", "text": f"how long is word {n}?"}]}]


def judge(body):
    """Answers by the prompt; every third answer is broken at first and is mended when shown."""
    text = str(body["messages"])
    broken = len(body["messages"]) == 1 and sum(map(ord, text)) % 3 == 0
    return Completion("so long" if broken else f'{{"length": {len(text)}}}', prompt_tokens=9, completion_tokens=4)


async def run(url, cache, n=20, **options):
    """A run of a bench: `n` questions, all at once."""
    layer = Cached(ChatClient("judge", [url], max_concurrency=8), cache)
    asked = (ask(layer, prompt(i), Length, key=f"{i}", deadline_s=10, max_tokens=32, **options) for i in range(n))
    found = await asyncio.gather(*asked)
    await layer.aclose()
    return found, layer


async def test_a_second_identical_run_is_all_hits_and_no_call(tmp_path):
    with serve(judge) as server:
        cache = ReplyCache(tmp_path / "cache.sqlite")
        first, layer = await run(server.base_url, cache)
        calls = len(server.requests)
        assert layer.hits == 0 and layer.misses == calls > 20, "repairs are among them"
        cache.close()
        cache = ReplyCache(tmp_path / "cache.sqlite")
        second, layer = await run(server.base_url, cache)
        assert len(server.requests) == calls, "0 calls"
        assert (layer.hits, layer.misses) == (calls, 0), "100 % hits"
        cache.close()
    assert [f.value for f in second] == [f.value for f in first]
    assert {f.chat.calls for f in second} == {0}
    assert [f.chat.prompt_tokens for f in second] == [f.chat.prompt_tokens for f in first]
    assert (tmp_path / "cache.sqlite").stat().st_mode & 0o777 == 0o600


async def test_cache_under_a_journal_serves_a_run_with_a_new_journal(tmp_path):
    with serve(judge) as server:
        cache, calls = ReplyCache(tmp_path / "cache.sqlite"), []
        for n in range(2):
            journal = Journal(tmp_path / f"journal-{n}.jsonl")
            layer = Journaled(
                Cached(ChatClient("judge", [server.base_url], max_concurrency=1), cache), journal, "judge"
            )
            await ask(layer, prompt(1), Length, key="1", deadline_s=5, max_tokens=8)
            assert len(journal) >= 1
            await layer.aclose()
            journal.close()
            calls.append(len(server.requests))
        assert calls[0] == calls[1] > 0
        cache.close()


async def test_above_temperature_0_nothing_is_kept(tmp_path):
    with serve(judge) as server:
        cache = ReplyCache(tmp_path / "c")
        for _ in range(2):
            await run(server.base_url, cache, n=3, temperature=0.7)
        assert len(cache) == 0 and len(server.requests) >= 6
        cache.close()


@pytest.mark.parametrize(
    "change",
    [
        {"messages": prompt(2)},
        {"max_tokens": 9},
        {"schema": JsonSchema("r", {"type": "object"})},
        {"model": "other"},
        {"namespace": "new weights"},
    ],
)
async def test_whatever_decides_an_answer_is_part_of_its_key(tmp_path, change):
    with serve(judge) as server:
        for change_it in (False, True, True):
            options = {"messages": prompt(1), "max_tokens": 8, "schema": None, "model": "judge", "namespace": ""}
            options |= change if change_it else {}
            cache = ReplyCache(tmp_path / "c", options.pop("namespace"))
            layer = Cached(ChatClient(options.pop("model"), [server.base_url], max_concurrency=1), cache)
            await layer.complete(options.pop("messages"), key="k", deadline_s=5, **options)
            await layer.aclose()
            cache.close()
        assert len(server.requests) == 2


async def test_the_callers_key_is_not_part_of_it(tmp_path):
    with serve(judge) as server:
        cache = ReplyCache(tmp_path / "c")
        layer = Cached(ChatClient("judge", [server.base_url], max_concurrency=1), cache)
        for key in ("a", "b"):
            await layer.complete(prompt(1), key=key, deadline_s=5, max_tokens=8)
        assert len(server.requests) == 1 and layer.hits == 1
        await layer.aclose()
        cache.close()


async def test_failures_are_not_kept_and_refusals_are(tmp_path):
    answers = [error(500, "x"), Completion("", refusal="no")]
    with serve(lambda body: answers.pop(0)) as server:
        cache = ReplyCache(tmp_path / "c")
        layer = Cached(ChatClient("judge", [server.base_url], max_concurrency=1, attempts=1), cache)
        found = [await layer.complete(prompt(1), key="k", deadline_s=5, max_tokens=8) for _ in range(3)]
        assert [f.outcome for f in found] == [Outcome.FAILED, Outcome.REFUSED, Outcome.REFUSED]
        assert found[2].detail == "no"
        await layer.aclose()
        cache.close()


async def test_answers_that_are_not_usable_are_asked_for_again_also_where_the_file_holds_one(tmp_path):
    answers = [Completion("broken"), Completion("broken"), Completion("fine")]
    with serve(lambda body: answers.pop(0)) as server:
        cache = ReplyCache(tmp_path / "c")
        client = ChatClient("judge", [server.base_url], max_concurrency=1)
        for usable in ({}, *[{"usable": lambda found: found.text == "fine"}] * 3):
            layer = Cached(client, cache, **usable)
            found = await layer.complete(prompt(1), key="k", deadline_s=5, max_tokens=8)
        assert found.text == "fine" and layer.hits == 1 and len(server.requests) == 3
        await client.aclose()
        cache.close()


# -- single flight ----------------------------------------------------------------------------------


async def slow(body):
    await asyncio.sleep(0.2)
    return Completion("hi")


async def test_equal_questions_at_the_same_time_share_one_request(tmp_path):
    with serve(slow) as server:
        cache = ReplyCache(tmp_path / "c")
        layer = Cached(ChatClient("judge", [server.base_url], max_concurrency=32), cache)
        calls = [layer.complete(prompt(n % 2), key=str(n), deadline_s=5, max_tokens=8) for n in range(20)]
        found = await asyncio.gather(*calls)
        assert {f.text for f in found} == {"hi"} and len(server.requests) == 2
        assert (layer.hits, layer.misses) == (18, 2) and not layer._under_way
        await layer.aclose()
        cache.close()


async def test_if_the_first_brings_no_answer_another_asks(tmp_path):
    answers = [error(500, "x"), error(500, "x")]
    with serve(lambda body: answers.pop(0) if answers else Completion("hi")) as server:
        cache = ReplyCache(tmp_path / "c")
        layer = Cached(ChatClient("judge", [server.base_url], max_concurrency=8, attempts=1), cache)
        calls = [layer.complete(prompt(1), key=str(n), deadline_s=5, max_tokens=8) for n in range(6)]
        outcomes = [f.outcome for f in await asyncio.gather(*calls)]
        assert sorted(outcomes) == ["failed"] * 2 + ["ok"] * 4 and len(server.requests) == 3
        await layer.aclose()
        cache.close()


async def test_a_first_that_is_cancelled_takes_nobody_with_it(tmp_path):
    with serve(slow) as server:
        cache = ReplyCache(tmp_path / "c")
        layer = Cached(ChatClient("judge", [server.base_url], max_concurrency=8), cache)
        tasks = [
            asyncio.create_task(layer.complete(prompt(1), key=str(n), deadline_s=5, max_tokens=8)) for n in range(4)
        ]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError) and {f.text for f in found[1:]} == {"hi"}
        await layer.aclose()
        cache.close()


async def test_who_waits_for_an_equal_question_keeps_its_own_deadline(tmp_path):
    with serve(slow) as server:
        cache = ReplyCache(tmp_path / "c")
        layer = Cached(ChatClient("judge", [server.base_url], max_concurrency=8), cache)
        first = asyncio.create_task(layer.complete(prompt(1), key="a", deadline_s=5, max_tokens=8))
        await asyncio.sleep(0.05)
        second = await layer.complete(prompt(1), key="b", deadline_s=0.05, max_tokens=8)
        assert second.outcome is Outcome.TIMEOUT and (await first).outcome is Outcome.OK
        await layer.aclose()
        cache.close()


class Queued:
    """A model before which a call queues for a while, and which then takes its time."""

    model = "m"

    def __init__(self, queue_s, takes_s):
        self.queue_s, self.takes_s, self.calls = queue_s, takes_s, 0

    async def complete(self, messages, **call):
        self.calls += 1
        try:
            async with Deadline(call["deadline_s"], call.get("within")) as deadline:
                with deadline.paused(outer=True):
                    await asyncio.sleep(self.queue_s)
                await asyncio.sleep(self.takes_s)
        except TimeoutError:
            return ChatResult(Outcome.TIMEOUT)
        return ChatResult(Outcome.OK, "hi")


@pytest.mark.parametrize("later_s", [0.0, 0.2])
async def test_who_waits_for_an_equal_question_does_not_pay_for_its_queue(tmp_path, later_s):
    cache, model = ReplyCache(tmp_path / "c"), Queued(queue_s=1.2, takes_s=0.05)
    layer = Cached(model, cache)

    async def asked(key, after_s, within=None):
        await asyncio.sleep(after_s)
        return await layer.complete(prompt(1), key=key, deadline_s=0.6, max_tokens=8, within=within)

    async with Deadline(0.9) as dialogue:
        found = await asyncio.gather(asked("a", 0.0), asked("b", later_s, within=dialogue))
        assert dialogue.left() > 0.2, "the waiting call's own caller does not pay either"
    assert [f.outcome for f in found] == [Outcome.OK] * 2 and model.calls == 1
    cache.close()


async def test_who_waits_for_an_equal_question_pays_for_what_follows_its_queue(tmp_path):
    cache, model = ReplyCache(tmp_path / "c"), Queued(queue_s=1.0, takes_s=5.0)
    layer = Cached(model, cache)
    first = asyncio.create_task(layer.complete(prompt(1), key="a", deadline_s=20, max_tokens=8))
    await asyncio.sleep(0.05)
    second = await layer.complete(prompt(1), key="b", deadline_s=0.3, max_tokens=8)
    assert second.outcome is Outcome.TIMEOUT and not first.done()
    assert second.latency_s > 0.6 and second.latency_s - second.waited_s == pytest.approx(0.3)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not layer._under_way
    cache.close()


# -- the file ---------------------------------------------------------------------------------------


def test_processes_share_one_file(tmp_path):
    code = """
import sys
from verl_steer.chat.cache import ReplyCache
from verl_steer.chat.outcome import ChatResult, Outcome
cache = ReplyCache(sys.argv[1])
for n in range(200):
    cache.put(f"{sys.argv[2]}-{n}", ChatResult(Outcome.OK, "x"))
    cache.put(f"both-{n}", ChatResult(Outcome.OK, "x"))
"""
    path = str(tmp_path / "c")
    running = [subprocess.Popen([sys.executable, "-c", code, path, str(k)]) for k in range(2)]
    assert [p.wait(120) for p in running] == [0, 0]
    cache = ReplyCache(path)
    assert len(cache) == 600
    cache.close()


def test_processes_may_make_the_file_at_the_same_time(tmp_path):
    code = """
import sys
import time
from verl_steer.chat.cache import ReplyCache
start = float(sys.argv[2])
for n in range(60):
    time.sleep(max(0.0, start + n * 0.02 - time.time()))
    ReplyCache(f"{sys.argv[1]}-{n}").close()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "c"), str(time.time() + 3)]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [p.wait(120) for p in running] == [0, 0, 0]


def test_a_network_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "disk_of", lambda folder: "nfs4")
    with pytest.raises(CacheError, match=r"network disk \(nfs4\).*local"):
        ReplyCache(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_disk_of_a_folder_is_the_one_of_the_longest_mount_point(tmp_path):
    mounts = tmp_path / "mounts"
    inside = tmp_path / "my data"
    inside.mkdir()
    root = str(tmp_path).replace(" ", "\\040")
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/x {root}/my\\040data nfs4 rw 0 0\ntmp {root}/other tmpfs rw 0 0\n")
    assert disk_of(inside, mounts) == "nfs4" and disk_of(tmp_path, mounts) == "ext4"
    assert disk_of(inside, tmp_path / "missing") == ""
    assert disk_of(tmp_path) not in cache_module.NETWORK_DISKS


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "c").write_bytes(b"these are my notes, " * 300)
    with pytest.raises(CacheError, match=r"/c cannot be used as a cache"):
        ReplyCache(tmp_path / "c")
    assert (tmp_path / "c").read_bytes().startswith(b"these are my notes")


def test_a_damaged_entry_is_named(tmp_path):
    cache = ReplyCache(tmp_path / "c")
    cache.put("d", ChatResult(Outcome.OK, "x"))
    cache._db.execute("UPDATE reply SET value = '{\"text\": 1}'")
    with pytest.raises(CacheError, match="entry d is damaged"):
        cache.get("d")
    cache.close()
    with pytest.raises(CacheError, match="cannot be used"):
        cache.get("d")


def test_a_disk_without_shared_memory_is_refused(tmp_path, monkeypatch):
    class Stubborn(sqlite3.Connection):
        def execute(self, statement, *values):
            return super().execute("SELECT 'delete'" if "journal_mode" in statement else statement, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kw: connect(*args, factory=Stubborn, **kw))
    with pytest.raises(CacheError, match="shared memory"):
        ReplyCache(tmp_path / "c")
