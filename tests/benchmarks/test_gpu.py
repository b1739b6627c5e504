"""benchmarks/gpu.py: what it reads from a run's output, from the card and from the records, and where it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("verl")
import gpu
from gpu_doc import BEGIN, END, page_for, table, write_figures

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
#: As verl's console logger writes steps.
OUTPUT = "".join(
    f"step:{step} - actor/grad_norm:np.float64({gradient}) - timing_s/step:{seconds} - timing_s/gen:{seconds / 2} - "
    f"perf/throughput:{100 * step} - actor/perf/max_memory_allocated_gb:{10 + step} - "
    f"training/rollout_probs_diff_max:{step}e-08\n"
    for step, gradient, seconds in ((1, 0.5, 90.0), (2, 0.25, 10.0), (3, 0.125, 20.0))
)


def _found(device: str = "Some Card") -> dict:
    run = gpu.figures(OUTPUT, 3) | {"rollout": "hf", "card_peak_gib": None, "tutor_longest_dialogue_s": 3.0}
    sizes = {"steps": 3, "seeds": 16, "siblings": 4, "turns": 3, "reply": 128, "tutor_s": 1.0}
    return {"device": device, "geometry": "tiny", "sizes": sizes, "runs": {"hf": run, "single-turn": run}}


def test_the_first_step_does_not_count_and_peaks_are_of_all_steps():
    found = gpu.figures(OUTPUT, 3)
    assert found["step_s"] == 15.0 and found["rollout_s"] == 7.5 and found["tokens_per_s"] == 250.0
    assert found["trainer_peak_gib"] == 13.0 and found["probs_diff_max"] == 3e-8
    assert found["ok"] and found["weights_s"] is None, "what verl did not print is missing, not zero"


@pytest.mark.parametrize("output", [OUTPUT.replace("0.125", "0.0"), OUTPUT.splitlines()[0]])
def test_a_run_without_a_gradient_or_with_missing_steps_is_not_ok(output):
    assert not gpu.figures(output, 3)["ok"]


def test_the_page_keeps_its_text_and_gets_the_figures(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text(PAGE.read_text())
    write_figures(page, _found())
    before, after = PAGE.read_text().split(BEGIN)[0], PAGE.read_text().split(END)[1]
    text = page.read_text()
    assert text.startswith(before) and text.endswith(after) and table(_found()) in text
    assert "Some Card" in text and "No GPU run" not in text and "| step, s | 15 | 15 |" in text
    write_figures(page, _found("Another"))
    assert page.read_text().count("Measured on:") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["gpu.md"]


def test_the_page_of_the_repository_shows_figures_of_a_card_or_says_that_there_are_none():
    section = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert ("No GPU run has been made yet" in section) != ("Measured on:" in section)
    assert "Measured on: cpu" not in section


def test_a_page_without_its_marks_is_left_alone(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="needs the lines"):
        write_figures(page, _found())
    assert page.read_text() == "no marks\n"


def test_the_cards_peak_is_the_largest_that_nvidia_smi_tells(tmp_path, monkeypatch):
    smi, told = tmp_path / "nvidia-smi", tmp_path / "told"
    smi.write_text(f"#!/bin/sh\nif [ -f {told} ]; then echo 2048; else touch {told}; echo 40960; fi\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with gpu.card_peak(True) as peak:
        time.sleep(2.5)
    assert peak == {"gib": 40.0}
    with gpu.card_peak(False) as peak:
        pass
    assert peak == {}


def test_tutor_seconds_leave_the_first_step_out(tmp_path):
    turn = {"latency_s": 1.0, "tutor_calls": 1, "outcome": "ok"}
    (tmp_path / "train").mkdir()
    for step, turns in ((1, [turn] * 9), (2, [turn, turn, {**turn, "outcome": "timeout"}]), (3, [turn])):
        line = json.dumps({"step": step, "turns": turns})
        (tmp_path / "train" / f"step_{step:06d}.jsonl").write_text(line + "\n")
    found = gpu.tutor_seconds(tmp_path)
    assert found == {"tutor_longest_dialogue_s": 3.0, "tutor_call_s": 1.0, "tutor_unanswered": 1, "dialogues": 2}


def test_docs_gpu_md_gets_real_sizes_on_a_card_and_nothing_else(tmp_path):
    assert page_for(None, False, "Some Card") == PAGE
    assert page_for(None, True, "Some Card") is None
    assert page_for(None, False, "cpu") is None
    assert page_for(tmp_path / "own.md", True, "cpu") == tmp_path / "own.md"


@pytest.mark.parametrize("option", ["--tiny", "--quick"])
def test_tiny_sizes_are_run_on_the_cpu_by_either_name(tmp_path, option):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "on ${VERL_STEER_DEVICE:-any}: $*"\n')
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "VERL_STEER_DEVICE"} | {"PYTHON": str(python)}
    script = Path(gpu.__file__).with_suffix(".sh")
    done = subprocess.run(["bash", script, option], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"on cpu: benchmarks/gpu.py {option}\n"


def test_a_folder_that_holds_a_measurement_is_refused_before_anything_is_built(tmp_path, monkeypatch, capsys):
    (tmp_path / "hf").mkdir()
    monkeypatch.setattr(gpu, "measure", lambda *_: pytest.fail("nothing is to be measured"))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2 and "holds an earlier measurement (hf)" in capsys.readouterr().err
