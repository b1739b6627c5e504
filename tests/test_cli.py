"""The commands on records: rescoring and the learning curve."""

import json

import pytest
from PIL import Image

from verl_steer.cli import main
from verl_steer.config import Reward
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


def test_rescore_of_a_folder_without_records_says_so(tmp_path, capsys):
    assert main(["records", "rescore", str(tmp_path)]) == 2
    assert "holds no train records" in capsys.readouterr().err


def test_plot_draws_a_picture(records, capsys):
    assert main(["records", "plot", str(records)]) == 0
    path = capsys.readouterr().out.strip()
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_plot_without_records_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no dialogue records"):
        main(["records", "plot", str(tmp_path)])
