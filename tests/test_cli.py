"""The commands on records: rescoring and the learning curve; serving; what every command does when nobody reads on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import verl_steer
from verl_steer.cli import main
from verl_steer.config import Reward, SteerConfig
from verl_steer.dialogue import Dialogue, Kind, Script, Turn, UserTurn
from verl_steer.records import RecordWriter, build_record, dialogue_to_dict, score_to_dict
from verl_steer.scores import Outcome, TutorScores, Verdict
from verl_steer.tcsr import score_dialogue


@pytest.fixture
def records(tmp_path):
    """Two steps of training and validation, one harmful and one benign dialogue each; safety rises."""
    writer = RecordWriter(tmp_path / "records")
    for step, safety in ((1, 2), (2, 8)):
        for split in ("train", "val"):
            lines = []
            for kind in (Kind.RED_TEAM, Kind.BENIGN):
                script = Script(f"{kind}-1", kind, (UserTurn("q1"), UserTurn("q2")))
                verdict = Verdict(Outcome.OK, TutorScores(safety, 1, 5))
                turns = [Turn(t, t.text, "r", verdict, tutor_calls=1) for t in script.turns]
                dialogue = Dialogue(script, 2, turns)
                score = score_to_dict(score_dialogue(dialogue, Reward(), 1.0))
                lines.append(
                    build_record({"step": step, "session": 0, "uid": str(kind)}, dialogue_to_dict(dialogue), score)
                )
            writer.write_step(split, step, lines)
    return tmp_path / "records"


def test_rescore_scores_stored_dialogues_again(records, capsys):
    assert main(["records", "rescore", str(records), "--preset", "reference", "--set", "alpha=0"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2]
    # score/10, weights .4/.4/.2, terminal: (0.8 + 0.4 + 1.0) / 10 and (3.2 + 0.4 + 1.0) / 10
    assert [line["return"] for line in lines] == pytest.approx([0.22, 0.22, 0.46, 0.46])


def test_rescore_names_a_wrong_preset_and_a_wrong_key(records, capsys):
    assert main(["records", "rescore", str(records), "--preset", "papre"]) == 2
    assert "paper" in capsys.readouterr().err
    assert main(["records", "rescore", str(records), "--set", "alhpa=0"]) == 2
    assert "did you mean alpha" in capsys.readouterr().err


def test_rescore_says_which_value_is_no_yaml(records, capsys):
    assert main(["records", "rescore", str(records), "--set", "weights={safety: 1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("verl-steer: --set weights={safety: 1: the value is no YAML: expected ',' or '}'")
    assert len(said.splitlines()) == 1


def test_rescore_of_a_folder_without_records_says_so(tmp_path, capsys):
    assert main(["records", "rescore", str(tmp_path)]) == 2
    assert "holds no train records" in capsys.readouterr().err


def played(records, safeties):
    """One group of a step, one rollout a list of safety scores; stored as `paper_v2` scores them."""
    reward = SteerConfig.from_mapping({"reward": {"preset": "paper_v2"}}).reward.resolve()
    lines = []
    for session, scores in enumerate(safeties):
        script = Script("s", Kind.RED_TEAM, tuple(UserTurn(f"q{n}") for n in range(len(scores))))
        verdicts = [Verdict(Outcome.OK, TutorScores(safety, safety, safety)) for safety in scores]
        turns = [Turn(t, t.text, "r", v, tutor_calls=1) for t, v in zip(script.turns, verdicts, strict=True)]
        dialogue = Dialogue(script, len(scores), turns)
        score = score_to_dict(score_dialogue(dialogue, reward, 1.0))
        lines.append(build_record({"step": 1, "session": session, "uid": "g"}, dialogue_to_dict(dialogue), score))
    RecordWriter(records).write_step("train", 1, lines)
    return records


def compared(records, *keys, capsys):
    assert main(["records", "compare", str(records), "--json", "--preset", "paper_v2", *keys]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_compare_finds_the_run_s_own_settings_alike(tmp_path, capsys):
    found = compared(played(tmp_path, [(10, 1), (10, 10), (1, 1)]), capsys=capsys)
    assert found == {"rollouts": 3, "informative": 1.0, "correlation": pytest.approx(1), "same_sign": 1.0, "scale": 1.0}


def test_compare_tells_direction_from_scale(tmp_path, capsys):
    """Two turns. Turn rewards 1 and 0, so by hand, with alpha 0.3: R~ of (1, 0) is 1 + .7 / 2 = 1.35, of (0, 1) .35, of (1, 1) 2.

    The plain mean gives .5, .5 and 1: A = (1.35, .35, 2) - 1.2333 against (.5, .5, 1) - .6667.
    """
    records = played(tmp_path, [(10, 1), (1, 10), (10, 10)])
    found = compared(records, "--set", "return=plain_mean", capsys=capsys)
    one, two = np.array([1.35, 0.35, 2.0]) - 3.7 / 3, np.array([0.5, 0.5, 1.0]) - 2 / 3
    assert found["correlation"] == pytest.approx(one @ two / (one @ one * (two @ two)) ** 0.5)
    assert found["same_sign"] == pytest.approx(2 / 3), (
        "the early slip is below its group's mean both ways, the late one only here"
    )
    assert found["scale"] == pytest.approx((two @ two / (one @ one)) ** 0.5)


def test_compare_of_groups_without_signal_invents_no_figure(tmp_path, capsys):
    assert main(["records", "compare", str(played(tmp_path, [(5,), (5,)]))]) == 0
    assert "2 rollouts; 0.0% have an advantage" in (out := capsys.readouterr().out) and "nan" in out
    found = compared(tmp_path, capsys=capsys)
    assert found == {"rollouts": 2, "informative": 0.0, "correlation": None, "same_sign": None, "scale": None}


def test_plot_draws_a_picture(records, capsys):
    assert main(["records", "plot", str(records)]) == 0
    path = capsys.readouterr().out.strip()
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_plot_without_records_says_so(tmp_path, capsys):
    assert main(["records", "plot", str(tmp_path)]) == 2
    assert "holds no dialogue records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "step_000003.jsonl, line 1: no JSON"),
        ('{"step": 3}', "a record lacks what a curve needs: KeyError: 'kind'"),
    ],
)
def test_plot_says_what_is_wrong_with_a_record(records, capsys, line, said):
    (records / "val" / "step_000003.jsonl").write_text(line + "\n")
    assert main(["records", "plot", str(records)]) == 2
    assert said in capsys.readouterr().err


def test_plot_makes_the_folder_that_it_is_told_and_says_what_cannot_be_one(records, tmp_path, capsys):
    out = tmp_path / "new" / "curve.png"
    assert main(["records", "plot", str(records), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["curve.png"]
    capsys.readouterr()
    assert main(["records", "plot", str(records), "--out", str(out / "curve.png")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("verl-steer: ") and str(out) in said and len(said.splitlines()) == 1


def test_a_plot_that_fails_half_way_leaves_the_old_picture_and_nothing_beside_it(records, monkeypatch, capsys):
    from matplotlib.figure import Figure

    out = records / "learning_curve.png"
    out.write_bytes(b"old")

    def full(figure, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    assert main(["records", "plot", str(records)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert out.read_bytes() == b"old" and [p.name for p in records.iterdir() if p.is_file()] == [out.name]


# -- serving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_server_that_would_answer_nobody_is_not_started(tmp_path, capsys, size):
    assert main(["serve", "checkpoint", str(tmp_path), "--batch-size", size]) == 2
    assert capsys.readouterr().err == f"verl-steer: --batch-size {size}: give 1 or more\n"


# -- every command --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("records", "rescore", "{records}"), ("data", "sources")])
def test_a_reader_that_has_read_enough_ends_a_command_without_a_word(records, command):
    """`| head`, at its earliest: nobody reads at all. One command of each kind that says errors in a line."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "verl_steer.cli", *(part.format(records=records) for part in command)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(verl_steer.__file__).parents[1])},
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
