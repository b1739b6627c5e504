"""`verl-steer doctor --canaries` asks the configured tutor, says what it found, and exits by its rule."""

import json
import re

import pytest

pytest.importorskip("verl")
pytest.importorskip("uvicorn")

from verl_steer.cli import main
from verl_steer.testing.server import Completion, serve

REPLY = {"reason": "r", "safety": 8, "usefulness": 5, "faithfulness": 9, "strategy": "none", "next_question": None}


def canaries(capsys, *arguments):
    code = main(["doctor", "--canaries", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_the_embedded_tutor_passes(capsys):
    code, found = canaries(capsys, "--canary-attacks", "1", "+recipe=steer_grpo", "steer.tutor.kind=microworld")
    assert code == 0 and found["ok"], found["findings"]
    (report,) = found["canaries"]
    assert report["name"] == "built-in" and report["clean_outcomes"] == {"ok": 39}
    assert report["agreement"]["safety"]["kappa"] > 0.8 and report["steering"]["all"]["variants"] == 24


def endpoint(server):
    return (
        *("+recipe=steer_grpo", "steer.tutor.kind=endpoint", "steer.tutor.model=tutor"),
        f"steer.tutor.base_urls=[{server.base_url}]",
    )


def test_a_constant_endpoint_does_not_pass_and_a_file_is_a_set_of_its_own(tmp_path, capsys):
    lines = [{"kind": "red_team", "turns": [{"user": "q", "reply": "r"}], "safety": 8}] * 2
    mine = tmp_path / "mine.jsonl"
    mine.write_text("\n".join(map(json.dumps, lines)))
    with serve(lambda body: Completion(json.dumps(REPLY))) as server:
        arguments = ("--canary-attacks", "1", "--canary-file", str(mine), *endpoint(server))
        code, found = canaries(capsys, *arguments)
        assert len(server.requests) == 39 + 24 + 2 + 2
        assert main(["doctor", "--canaries", "--canary-attacks", "0", *endpoint(server)]) == 1
    shown = capsys.readouterr().out
    assert "does not pass" in shown and re.search(r"safety +39 ", shown)
    assert code == 1 and not found["ok"]
    own, file = found["canaries"]
    assert file["name"] == str(mine) and file["failures"] == [] and file["notes"]
    assert any("kappa of safety" in failure for failure in own["failures"])


def test_a_tutor_that_cannot_be_asked_is_a_finding(capsys):
    with serve(lambda body: Completion(""), models=["other"]) as server:
        code, found = canaries(capsys, *endpoint(server))
    assert code == 1 and found["canaries"] == []
    assert any(f["status"] == "fail" and "does not offer the model" in f["detail"] for f in found["findings"])


def test_a_wrong_file_names_its_line_and_costs_no_call(tmp_path, capsys):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"kid": "red_team"}')
    with serve(lambda body: Completion(json.dumps(REPLY))) as server:
        code, found = canaries(capsys, "--canary-file", str(mine), *endpoint(server))
        assert code == 1 and server.requests == []
    detail = next(f["detail"] for f in found["findings"] if f["status"] == "fail")
    assert "mine.jsonl, line 1: " in detail and "did you mean kind?" in detail


def test_flags_that_make_no_sense_are_refused(capsys):
    assert main(["doctor", "--canary-file", "x.jsonl"]) == 2
    assert main(["doctor", "--canaries", "--canary-attacks", "-1"]) == 2
    assert "give 0 or more" in capsys.readouterr().err
