"""A run folder reads back as it was written; damage is named, and a kill costs no whole line."""

import json
import stat

import pytest

from verl_steer.bench import files, pictures
from verl_steer.bench.lines import BenchError, Lines, read_lines
from verl_steer.chat.outcome import Outcome
from verl_steer.dialogue import ImageRef, Kind

TURN = files.PlayedTurn(question="what?", reply="this\u2028and\nthat", finish_reason="stop", completion_tokens=3)
PNG = ImageRef(b"\x89PNG\r\n\x1a\nrest")


def played(n, **changes):
    values = {
        "id": f"row-{n}",
        "subset": "one",
        "kind": Kind.BENIGN,
        "cluster": "c",
        "planned_turns": 1,
        "status": "done",
        "images": ((PNG.sha256,),),
        "turns": (TURN,),
    }
    return files.Played(**{**values, **changes})


def run(**changes):
    bench = files.BenchFile(file="bench.parquet", sha256="0" * 64, rows=2)
    return files.Run(name="m", model={"kind": "policy"}, decoding={"max_tokens": 8}, bench=bench, **changes)


def test_a_run_folder_reads_back_as_it_was_written(tmp_path):
    files.write_run(tmp_path, run(seed=3))
    assert files.read_run(tmp_path) == run(seed=3)
    lines = Lines(tmp_path / files.DIALOGUES, files.Played)
    lines.append(played(1))
    lines.append(played(0))
    assert files.read_dialogues(tmp_path) == [played(1), played(0)]
    lines.settle([played(0), played(1)])
    lines.close()
    assert files.read_dialogues(tmp_path) == [played(0), played(1)]
    assert stat.S_IMODE((tmp_path / files.DIALOGUES).stat().st_mode) == 0o600
    pictures.put_image(tmp_path, PNG)
    assert pictures.images_of(tmp_path, played(0)) == [(PNG,)]
    judges = {"b": files.Judge(model="x"), "a": files.Judge(model="y", prompt_sha256="1", canaries={"n": 1})}
    files.write_judges(tmp_path, judges)
    assert files.read_judges(tmp_path) == judges


def test_verdicts_are_scored_exactly_if_ok_and_the_last_of_a_turn_counts(tmp_path):
    missing = files.Judged(id="r", turn=1, outcome=Outcome.TIMEOUT, reason="no answer")
    good = files.Judged(id="r", turn=1, outcome=Outcome.OK, harmlessness=3, helpfulness=0)
    for outcome, h, u in [(Outcome.OK, None, None), (Outcome.OK, 3, None), (Outcome.FAILED, -3, 0)]:
        with pytest.raises(ValueError, match="scores disagree"):
            files.Judged(id="r", turn=1, outcome=outcome, harmlessness=h, helpfulness=u)
    lines = Lines(tmp_path / "verdicts" / "j.jsonl", files.Judged)
    lines.append(missing)
    lines.append(good)
    lines.close()
    assert files.read_verdicts(tmp_path, "j") == {("r", 1): good}
    with pytest.raises(BenchError, match="'k' has given no verdicts; judges that have: j"):
        files.read_verdicts(tmp_path, "k")


def test_a_torn_last_line_is_cut_off_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / files.DIALOGUES
    lines = Lines(path, files.Played)
    lines.append(played(0))
    lines.close()
    with path.open("ab") as file:
        file.write(b'{"id": "row-1", "sub')
    assert read_lines(path, files.Played) == [played(0)]
    lines = Lines(path, files.Played)
    lines.append(played(1))
    lines.close()
    assert read_lines(path, files.Played) == [played(0), played(1)]
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + second.replace(b'"done"', b'"dun"') + b"\n")
    with pytest.raises(BenchError, match=r"dialogues.jsonl, line 2: status: .*remove the line"):
        Lines(path, files.Played)


def test_a_row_that_is_played_again_counts_once_and_its_last_line_stands(tmp_path):
    """A rerun that was stopped before it could put the new lines in the place of the old ones."""
    failed = [played(n, status="failed", why="no reply", turns=()) for n in (0, 1)]
    rejected = played(0, id="row 1", status="rejected", why="no picture", turns=())
    lines = Lines(tmp_path / files.DIALOGUES, files.Played)
    for line in (*failed, rejected, played(1), rejected, played(0, id="row 1")):
        lines.append(line)
    lines.close()
    found = files.read_dialogues(tmp_path)
    assert found == [failed[0], played(1), rejected, played(0, id="row 1")]
    for rows, whole in ((4, True), (5, False)):
        bench = files.BenchFile(file="bench.parquet", sha256="0" * 64, rows=rows)
        files.write_run(tmp_path, run().model_copy(update={"bench": bench}))
        if whole:
            assert files.read_finished(tmp_path)[1] == found
        else:
            with pytest.raises(BenchError, match="holds 4 of 5 dialogues: repeat its `bench run` command first"):
                files.read_finished(tmp_path)


def test_two_processes_do_not_write_one_file(tmp_path):
    lines = Lines(tmp_path / "a.jsonl", files.Judged)
    with pytest.raises(BenchError, match="another process"):
        Lines(tmp_path / "a.jsonl", files.Judged)
    lines.close()
    Lines(tmp_path / "a.jsonl", files.Judged).close()


def test_a_dialogue_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="is done with 0 of 1 turns"):
        played(0, turns=())
    with pytest.raises(ValueError, match="without a reason"):
        played(0, status="failed")
    assert files.accounted([played(0), played(1, status="failed", why="x"), played(2)]) == {
        "done": 2,
        "failed": 1,
        "rejected": 0,
    }


def test_what_is_no_run_folder_says_so(tmp_path):
    with pytest.raises(BenchError, match="give the folder of a `verl-steer bench run`"):
        files.read_run(tmp_path)
    with pytest.raises(BenchError, match="give the folder of a bench run"):
        files.read_dialogues(tmp_path)
    (tmp_path / files.RUN).write_text(json.dumps({"version": 2}))
    with pytest.raises(BenchError, match="damaged or of another version: version"):
        files.read_run(tmp_path)
    (tmp_path / files.JUDGES).write_text("{")
    with pytest.raises(BenchError, match="is damaged"):
        files.read_judges(tmp_path)
    with pytest.raises(BenchError, match="becomes a file's name"):
        files.read_verdicts(tmp_path, "../x")
    with pytest.raises(BenchError, match="lacks the picture"):
        pictures.images_of(tmp_path, played(0))
    pictures.put_image(tmp_path, PNG)
    pictures.image_path(tmp_path, PNG.sha256).write_bytes(b"other")
    with pytest.raises(BenchError, match="other bytes"):
        pictures.images_of(tmp_path, played(0))
