"""A conversion can be stopped at any instant, goes on with the same command, and gives the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from published_sources import FIXTURES, build, image, lines, parquet

from verl_steer.cli import main
from verl_steer.data import convert as module
from verl_steer.data import sources
from verl_steer.data.convert import convert
from verl_steer.data.options import Options
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
    assert main(command) == 1, "no row came out of it"
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
    assert main(["data", "convert", "vlsbench", str(fixture.path), "--to", "bench", "--out", str(out)]) == 1
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


@pytest.mark.parametrize("mark", [None, "", '{"version": 1, "opt', "[1]"])
def test_parts_that_no_plan_owns_are_thrown_away(tmp_path, small_parts, monkeypatch, mark):
    """What an interrupted removal, or a full disk, leaves of the parts of who knows what."""
    path, out = talks(tmp_path / "x.jsonl", 30), tmp_path / "o" / "rl.parquet"
    monkeypatch.setattr(Parts, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(talks(tmp_path / "other.jsonl", 30, bad_every=4), out)
    monkeypatch.undo()
    plan = tmp_path / "o" / "rl.parquet.parts" / "plan.json"
    assert (plan.parent / "000002.json").is_file()
    plan.unlink() if mark is None else plan.write_text(mark)
    assert run(path, out).written == 26
    assert run(path, tmp_path / "whole" / "rl.parquet").sha256 == file_hash(out)


def test_an_interrupted_removal_of_parts_leaves_none_that_is_trusted(tmp_path, small_parts, monkeypatch):
    path, out = talks(tmp_path / "x.jsonl", 30), tmp_path / "o" / "rl.parquet"
    monkeypatch.setattr("verl_steer.data.parts.shutil.rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(path, out)
    monkeypatch.undo()
    left = tmp_path / "o" / "rl.parquet.parts"
    assert (left / "000000.json").is_file() and not (left / "plan.json").exists()
    (left / "000000.parquet").unlink()
    out.unlink()
    assert run(path, out).written == 26


def test_an_account_that_is_not_whole_is_none(tmp_path):
    path, out = talks(tmp_path / "x.jsonl", 10), tmp_path / "o" / "rl.parquet"
    first = run(path, out)
    (tmp_path / "o" / "rl.parquet.account.json").write_text('{"read": 1')
    again = run(path, out)
    assert again == first and not again.earlier


def test_another_picture_of_the_same_name_is_another_conversion(tmp_path):
    path, picture, out = talks(tmp_path / "x.jsonl", 3), tmp_path / "p.png", tmp_path / "o" / "rl.parquet"
    shown = []
    for colour in ("red", "red", "blue"):
        picture.write_bytes(image(colour)["bytes"])
        assert run(path, out, image=picture).earlier == (shown == ["red"])
        shown.append(colour)
    (row, *_) = read_split(out)
    run(path, tmp_path / "fresh.parquet", image=picture)
    assert row.turns[0].images == next(read_split(tmp_path / "fresh.parquet")).turns[0].images


def ids(paths, out):
    account = convert(sources.get("cosafe"), Options(to="script", paths=tuple(paths)), out)
    assert account.rejected == 0, account.rejected_path.read_text()
    return [row.id for row in read_split(out)]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    names = ("x/a/train", "y/a/train", "y/test", "train", "b/train")
    for place in ("here", "there"):
        for name in names:
            talks(tmp_path / place / f"{name}.jsonl", 2)
    files = [tmp_path / "here" / f"{name}.jsonl" for name in names]
    found = ids(files, tmp_path / "1.parquet")
    assert found == [
        f"cosafe-{name}-{n}" for name in ("x-a-train", "y-a-train", "test", "train", "b-train") for n in (1, 2)
    ]
    assert sorted(ids(reversed(files), tmp_path / "2.parquet")) == sorted(found), "whatever their order"
    assert sorted(ids([tmp_path / "there"], tmp_path / "3.parquet")) == sorted(found), "wherever they lie"
    assert ids([files[0], files[2]], tmp_path / "4.parquet") == [f"cosafe-{n}-{k}" for n in ("train", "test") for k in (1, 2)]  # fmt: skip


def test_files_that_differ_in_their_ending_alone_are_told_apart_by_it(tmp_path):
    one = talks(tmp_path / "train.jsonl", 1)
    two = parquet(tmp_path / "train.parquet", [{"messages": [{"role": "user", "content": "a"}]}])
    assert ids([one, two], tmp_path / "o.parquet") == ["cosafe-jsonl-train-1", "cosafe-parquet-train-1"]


def test_a_file_that_is_given_twice_is_no_two_files(tmp_path):
    path = talks(tmp_path / "d" / "x.jsonl", 2)
    account = convert(sources.get("cosafe"), Options(to="script", paths=(path, path.parent)), tmp_path / "o.parquet")
    assert (account.written, account.rejected) == (2, 2)
    assert [row.id for row in read_split(tmp_path / "o.parquet")] == ["cosafe-x-1", "cosafe-x-2"]


def test_ids_that_hold_their_folder_already_stay_as_they_were(tmp_path):
    folder = tmp_path / "data"
    for scenario in ("01-A", "02-B"):
        parquet(folder / scenario / "SD.parquet", [{"id": "0", "question": "q", "image": image()}])
    convert(sources.get("mm_safetybench"), Options(to="seed", paths=(folder,)), tmp_path / "o.parquet")
    assert [row.id for row in read_split(tmp_path / "o.parquet")] == [
        "mm_safetybench-SD-01-A-0",
        "mm_safetybench-SD-02-B-0",
    ]


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


def test_a_seed_keeps_the_system_prompt_of_its_question(tmp_path):
    prompt = {"role": "system", "content": " obey <|im_start|> the user\n"}
    asked = [{"role": "user", "content": "and now?"}]
    path = lines(tmp_path / "x.jsonl", [[prompt, *asked], asked, [{**prompt, "content": " "}, *asked]])
    run(path, tmp_path / "seed.parquet", "seed")
    with_it, *without = read_split(tmp_path / "seed.parquet")
    assert with_it.meta == {"system": "obey (im_start) the user"} and [row.meta for row in without] == [{}, {}]
    run(path, tmp_path / "rl.parquet")
    row = next(read_split(tmp_path / "rl.parquet"))
    assert (row.id, row.system, row.meta) == (with_it.id, with_it.meta["system"], {})


@pytest.mark.parametrize("name", FIXTURES)
def test_no_source_has_a_meta_value_where_a_seed_keeps_the_system_prompt(tmp_path, name):
    fixture = build(name, tmp_path)
    options = Options(to="script", paths=(fixture.path,), images=fixture.images)
    convert(sources.get(FIXTURES[name][0]), options, tmp_path / "o.parquet")
    assert not any("system" in row.meta for row in read_split(tmp_path / "o.parquet"))


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


@pytest.mark.parametrize(("rows", "status"), [([3, 4], 1), ([[{"role": "user", "content": "a"}], 3], 0), ([], 0)])
def test_the_command_fails_if_rows_were_read_and_none_was_written(tmp_path, capsys, rows, status):
    path = lines(tmp_path / "x.jsonl", rows)
    command = ["data", "convert", "cosafe", str(path), "--to", "rl", "--out", str(tmp_path / "o.parquet")]
    assert main(command) == status
    assert capsys.readouterr().out.startswith(f"{len(rows)} rows in = ")
    assert main(command) == status, "also if that was finished before"


def test_a_folder_without_a_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no \*\.jsonl"):
        run(tmp_path, tmp_path / "o.parquet")


def test_progress_says_what_was_read(tmp_path, small_parts):
    path, told = talks(tmp_path / "x.jsonl", 25), []
    convert(sources.get("cosafe"), Options(to="rl", paths=(path,)), tmp_path / "o.parquet", lambda *n: told.append(n))
    assert [read for read, _ in told] == [10, 20, 25] and told[-1][1] == 4
    stored = json.loads((tmp_path / "o.parquet.account.json").read_text())
    assert (stored["read"], stored["rejected"]) == (25, 4)
