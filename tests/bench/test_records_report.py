"""The page of training records."""

import json
from pathlib import Path

import numpy as np
import pytest

from verl_steer import cli
from verl_steer.bench.report.records_report import build_page, curve, safety
from verl_steer.config import SteerConfig
from verl_steer.curves import series
from verl_steer.dialogue import Dialogue, Kind, Script, Turn, UserTurn
from verl_steer.records import RecordWriter, build_record, dialogue_to_dict, safe_to_end, score_to_dict
from verl_steer.scores import Outcome, TutorScores, Verdict
from verl_steer.tcsr import score_dialogue


def record(step, scores, kind=Kind.RED_TEAM, planned=None):
    """A record as the sampler writes it; None is a verdict that failed."""
    script = Script(
        f"seed-{step}-{len(scores)}", kind, tuple(UserTurn(f"planned {t}") for t in range(len(scores))), "taboo"
    )
    turns = [
        Turn(
            UserTurn(f"planned {t}"),
            f"asked {t}",
            f"reply {t}",
            Verdict(Outcome.OK, TutorScores(s, 1, 10), "because", "tutor")
            if s
            else Verdict(Outcome.FAILED, None, "gone", "tutor"),
        )
        for t, s in enumerate(scores)
    ]
    dialogue = Dialogue(script, planned or len(scores), turns)
    reward = SteerConfig.from_mapping({}).reward.resolve()
    return build_record(
        {"step": step, "uid": "u"}, dialogue_to_dict(dialogue), score_to_dict(score_dialogue(dialogue, reward, 0.0))
    )


@pytest.fixture
def folder(tmp_path):
    writer = RecordWriter(tmp_path / "records")
    for step in (1, 2, 3):
        writer.write_step("train", step, [record(step, [10, 4, 10]), record(step, [10, None])])
        writer.write_step("val", step, [record(step, [8, 8], Kind.BENIGN)])
    return tmp_path / "records"


def test_the_command_makes_one_page_of_all_steps(folder, capsys):
    assert cli.main(["records", "report", str(folder)]) == 0
    path = folder / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(path)
    html = path.read_text()
    start = html.index('id="data">') + len('id="data">')
    block = json.loads(html[start : html.index("</script", start)])
    assert block["runs"] == ["val", "train"] and len(block["dialogues"]) == 9
    assert block["scales"][0] == {"label": "Safety", "bottom": 1, "top": 10, "failsBelow": 5}
    first = next(d for d in block["dialogues"] if d[0] == 1)
    assert first[2] == "step 1"
    assert [turn[2][0] for turn in first[10]] == [10, 4, 10]
    assert "train, step 3" in html and "How long dialogues stay safe: val" in html


def test_the_tutors_safety_decides_survival_and_missing_scores_do_not(folder):
    records = [record(1, [10, 4, 10]), record(1, [10, None]), record(1, [10, 10, 10])]
    scores, planned = safety(records)
    assert planned.tolist() == [3, 2, 3] and np.isnan(scores[1, 1])
    found = curve(records)
    assert found.at_risk.tolist() == [3, 2, 1]
    assert found.survival == pytest.approx([1, 0.5, 0.5])


def test_cut_and_unscored_dialogues_are_in_no_share_of_safe_ones():
    """Of these one is known to be safe and one to have failed."""
    records = [
        record(1, [10, 4, 10]),
        record(1, [10, 10]),
        record(1, [10, None], planned=8),
        record(1, [10], planned=4),
    ]
    assert series(records, safe_to_end) == {1: 0.5}
    table = build_page(Path("records"), [("val", one) for one in records]).tables[0]
    assert table.rows[0].cells[table.columns.index("No failed turn")].text == "50.0 %"


def test_redaction_leaves_no_text(folder, tmp_path):
    assert cli.main(["records", "report", str(folder), "--redact", "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "index.html").read_text()
    assert "reply 0" not in html and "because" not in html and "[redacted: 7 characters]" in html


def test_an_empty_folder_or_a_damaged_record_is_named(folder, tmp_path, capsys):
    assert cli.main(["records", "report", str(tmp_path / "nothing")]) == 2
    assert "holds no dialogue records" in capsys.readouterr().err
    (folder / "train" / "step_000009.jsonl").write_text('{"step": 9}\n')
    assert cli.main(["records", "report", str(folder)]) == 2
    assert "planned_turns" in capsys.readouterr().err
