"""A conversion can be stopped at any instant, goes on with the same command, and gives the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from published_sources import build, image, lines, parquet

from verl_steer.cli import main
from verl_steer.data import convert as module
from verl_steer.data import sources
from verl_steer.data.convert import Options, convert
from verl_steer.data.parts import Parts, file_hash
from verl_steer.data.rows import DataError
from verl_steer.data.splits import read_split

REPOSITORY = Path(__file__).parents[2]


def talks(path, n, bad_every=7):
    """CoSafe lines, one in `bad_every` of them broken."""
    rows = [[{"role": "user", "content": f"question {i}, {k}"} for k in range(1, 4)] for i in range(n)]
    return lines(path, [{"broken": i} if i % bad_every == 3 else row for i, row in enumerate(rows)])


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 10)
    monkeypatch.setattr(module, "_CHUNK", 4)


def run(path, out, to="rl", **options):
    return convert(sources.get("cosafe"), Options(to=to, paths=(path,), **options), out)


def test_the_same_input_gives_the_same_bytes_and_only_the_result_stays(tmp_path, small_parts):
    path = talks(tmp_path / "x.jsonl", 57)
    for name in ("one", "two"):
        account = run(path, tmp_path / name / "rl.parquet")
        assert (account.read, account.written, account.rejected) == (57, 49, 8)
    assert (tmp_path / "one/rl.parquet").read_bytes() == (tmp_path / "two/rl.parquet").read_bytes()
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert names == {"rl.parquet", "rl.parquet.rejected.jsonl", "rl.parquet.account.json"}
    assert [row.index for row in read_split(tmp_path / "one/rl.parquet")] == list(range(49))


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_an_interrupted_conversion_goes_on_and_gives_the_same_bytes(tmp_path, small_parts, monkeypatch, stop):
    path = talks(tmp_path / "x.jsonl", 57)
    run(path, tmp_path / "whole" / "rl.parquet")
    out = tmp_path / "cut" / "rl.parquet"
    commit, done = Parts.commit, []

    def interrupted(self, number, table, part):
        if number == stop and not done:
            done.append(number)
            raise KeyboardInterrupt
        commit(self, number, table, part)

    monkeypatch.setattr(Parts, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(path, out)
    assert not out.exists() and len(list((tmp_path / "cut" / "rl.parquet.parts").glob("0*.json"))) == stop
    seen = []
    monkeypatch.setattr(Parts, "commit", lambda self, number, *rest: (seen.append(number), commit(self, number, *rest)))
    account = run(path, out)
    assert seen == list(range(stop, 6)), "committed parts are not made again"
    assert (account.read, account.written + account.rejected) == (57, 57)
    assert out.read_bytes() == (tmp_path / "whole/rl.parquet").read_bytes()
    rejected = (tmp_path / "whole/rl.parquet.rejected.jsonl").read_bytes()
    assert account.rejected_path.read_bytes() == rejected and not (tmp_path / "cut/rl.parquet.parts").exists()


def test_a_killed_process_goes_on_with_the_same_command(tmp_path):
    """SIGKILL between two parts: nothing is cleaned up, and the next run ends with the bytes of a quiet one."""
    path = talks(tmp_path / "x.jsonl", 9_000)
    command = [sys.executable, "-m", "verl_steer.cli", "data", "convert", "cosafe", str(path), "--to", "rl", "--out"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    out, parts = tmp_path / "a" / "rl.parquet", tmp_path / "a" / "rl.parquet.parts"
    process = subprocess.Popen([*command, str(out)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (parts / "000001.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and (parts / "000000.json").exists()
    subprocess.run([*command, str(out)], env=env, check=True, capture_output=True)
    run(path, tmp_path / "b" / "rl.parquet")
    assert out.read_bytes() == (tmp_path / "b/rl.parquet").read_bytes()


def test_a_conversion_that_missed_pictures_looks_for_them_again(tmp_path, capsys):
    """The tables are what they were, the pictures have been unpacked since."""
    fixture = build("vlsbench", tmp_path)
    (fixture.path / "imgs").rename(tmp_path / "packed")
    out = tmp_path / "o" / "bench.parquet"
    command = ["data", "convert", "vlsbench", str(fixture.path), "--to", "bench", "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 rows in = 0 written + 2 rejected" in said and "2 lack the file of a picture" in said
    (tmp_path / "packed").rename(fixture.path / "imgs")
    assert main(command) == 0
    assert capsys.readouterr().out == f"2 rows in = 2 written + 0 rejected -> {out}\n"
    assert main(command) == 0
    assert f"finished before, nothing was read; remove {out}.account.json" in capsys.readouterr().out
    assert len(list(read_split(out))) == 2


def test_pictures_of_the_hubs_cache_are_refused_with_the_cure(tmp_path, capsys):
    """A download without --local-dir is a snapshot of links into a folder of blobs."""
    fixture = build("vlsbench", tmp_path)
    for n, picture in enumerate(sorted((fixture.path / "imgs").iterdir())):
        picture.symlink_to(picture.rename(tmp_path / f"blob-{n}"))
    out = tmp_path / "o" / "bench.parquet"
    assert main(["data", "convert", "vlsbench", str(fixture.path), "--to", "bench", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "0 written + 2 rejected" in said
    assert "goes through a link (0.png)" in said and "`hf download … --local-dir DIR` gives plain files" in said


def test_a_finished_conversion_is_not_done_again_unless_something_changed(tmp_path, monkeypatch):
    path, out = talks(tmp_path / "x.jsonl", 20), tmp_path / "o" / "rl.parquet"
    first = run(path, out)
    with monkeypatch.context() as nothing_is_read:
        nothing_is_read.setattr(module, "_records", lambda *_: pytest.fail("read again"))
        assert run(path, out) == first
    out.write_bytes(out.read_bytes()[:-1])  # damaged
    assert run(path, out) == first and file_hash(out) == first.sha256
    talks(path, 25)
    assert run(path, out).read == 25
    assert run(path, out, limit=3).read == 3


def test_parts_of_another_plan_are_thrown_away(tmp_path, small_parts, monkeypatch):
    path, out = talks(tmp_path / "x.jsonl", 30), tmp_path / "o" / "rl.parquet"
    commit = Parts.commit

    def once(self, number, *rest):
        commit(self, number, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "commit", once)
    with pytest.raises(KeyboardInterrupt):
        run(path, out)
    monkeypatch.setattr(Parts, "commit", commit)
    assert run(path, out, to="script").written == 26
    assert [type(row).__name__ for row in read_split(out)] == ["ScriptRow"] * 26


def test_the_last_question_of_a_conversation_is_a_seed_on_request(tmp_path):
    path = talks(tmp_path / "x.jsonl", 3)
    picture = tmp_path / "p.png"
    picture.write_bytes(image()["bytes"])
    account = run(path, tmp_path / "seed.parquet", "seed", last_question=True, image=picture)
    assert (account.read, account.written) == (3, 3)
    found = list(read_split(tmp_path / "seed.parquet"))
    assert [row.question for row in found] == [f"question {i}, 3" for i in range(3)]
    assert all(len(row.images) == 1 for row in found)
    assert run(path, tmp_path / "none.parquet", "seed").written == 0


def test_an_id_is_given_once(tmp_path):
    path = build("safedialbench", tmp_path).path
    path.write_text(path.read_text() * 3)
    account = convert(sources.get("safedialbench"), Options(to="script", paths=(path,)), tmp_path / "o.parquet")
    assert (account.read, account.written, account.rejected) == (3, 1, 2)
    assert "is already taken by an earlier row" in account.rejected_path.read_text()


def test_a_part_is_cut_by_the_weight_of_its_pictures_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 300)
    rows = [{"image": image(), "question": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    path = parquet(tmp_path / "train.parquet", rows)
    numbers = []
    commit = Parts.commit
    monkeypatch.setattr(Parts, "commit", lambda self, n, *rest: (numbers.append(n), commit(self, n, *rest)))
    account = convert(sources.get("spa_vl"), Options(to="sft", paths=(path,)), tmp_path / "o.parquet")
    assert account.written == 9 and len(numbers) >= 3


def test_a_source_in_which_nothing_is_good_gives_an_empty_split(tmp_path):
    path = lines(tmp_path / "x.jsonl", [3, 4])
    account = run(path, tmp_path / "o.parquet")
    assert (account.read, account.written, account.rejected) == (2, 0, 2) and list(
        read_split(tmp_path / "o.parquet")
    ) == []


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("cosafe", {"paths": (Path("nowhere.jsonl"),)}, "does not exist"),
        ("cosafe", {}, "is not on the hub; give the files"),
        (
            "jailbreakv",
            {},
            "JailBreakV-28k --repo-type dataset --local-dir DIR) and give DIR",
        ),
        ("cosafe", {"paths": (Path("README.md"),)}, "is not one of .parquet, .jsonl"),
        ("cosafe", {"paths": (Path(),), "image": Path("nowhere.png")}, "--image nowhere.png"),
        ("cosafe", {"paths": (Path(),), "images": Path("nowhere")}, "--images nowhere is not a folder"),
    ],
)
def test_what_is_wrong_as_a_whole_is_said_before_anything_is_written(tmp_path, monkeypatch, source, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("x")
    talks(tmp_path / "x.jsonl", 3)
    with pytest.raises(DataError) as error:
        convert(sources.get(source), Options(to="script", **options), tmp_path / "o" / "o.parquet")
    assert says in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "x.jsonl"]


def test_a_folder_without_a_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no \*\.jsonl"):
        run(tmp_path, tmp_path / "o.parquet")


def test_progress_says_what_was_read(tmp_path, small_parts):
    path, told = talks(tmp_path / "x.jsonl", 25), []
    convert(sources.get("cosafe"), Options(to="rl", paths=(path,)), tmp_path / "o.parquet", lambda *n: told.append(n))
    assert [read for read, _ in told] == [10, 20, 25] and told[-1][1] == 4
    stored = json.loads((tmp_path / "o.parquet.account.json").read_text())
    assert (stored["read"], stored["rejected"]) == (25, 4)
