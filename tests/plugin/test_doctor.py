"""The doctor names what is wrong and what to do, and says nothing else on its JSON channel."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

pytest.importorskip("verl")
from tiny_model import build_tiny_vlm

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.data.schemas import SftRow
from verl_steer.data.splits import LAYOUTS, table
from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.plugin.canary_check import run_canaries
from verl_steer.plugin.doctor import run_doctor

PATCHED = "VERL_STEER_PATCHED_VERL" in os.environ


def doctor(*overrides: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "verl_steer.cli", "doctor", "--json", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return done.returncode, json.loads(done.stdout)


def status(report: dict) -> dict[str, str]:
    return {f["name"]: f["status"] for f in report["findings"]}


@pytest.mark.train
def test_a_good_setup_has_no_blocker_and_the_plugin_is_seen_in_a_ray_worker(tmp_path):
    build_tiny_vlm(tmp_path / "student")
    script = Script("s", Kind.BENIGN, (UserTurn("hello"), UserTurn("again")))
    write_rows([script_to_row(script, 0, "rl")], tmp_path / "rl.parquet")
    code, report = doctor(
        "+recipe=steer_grpo",
        "steer.tutor.kind=microworld",
        f"actor_rollout_ref.model.path={tmp_path}/student",
        f"data.train_files={tmp_path}/rl.parquet",
        f"data.val_files={tmp_path}/rl.parquet",
        f"trainer.default_local_dir={tmp_path}/out",
        "data.train_batch_size=1",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    )
    assert code == 0 and report["ok"], report
    assert status(report)["plugin in a Ray worker"] == status(report)["data"] == "ok"
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_does_not_compose_is_named():
    code, report = doctor("+recipe=steer_gpro")
    assert code == 1 and status(report)["recipe"] == "fail"
    assert "steer_gpro" in next(f["detail"] for f in report["findings"] if f["name"] == "recipe")


def looked_at(*overrides: str) -> dict[str, tuple[str, str]]:
    """What the doctor finds, in this process: no Ray is started for stage II."""
    return {f.name: (f.status, f.detail) for f in run_doctor(list(overrides))}


def test_stage_two_is_looked_at_as_its_trainer_would(tmp_path):
    build_tiny_vlm(tmp_path / "student")
    turns = [{"text": "q", "reply": "yes"}] * 2
    rows = [SftRow(id=f"r{n}", source="s", kind="benign", turns=turns) for n in range(3)]
    pq.write_table(table(LAYOUTS["sft"], rows), tmp_path / "sft.parquet")
    recipe = (
        "+recipe=steer_sft",
        f"model.path={tmp_path}/student",
        f"data.train_files={tmp_path}/sft.parquet",
        f"trainer.default_local_dir={tmp_path}/out",
        "data.max_length=128",
    )
    found = looked_at(*recipe, "data.train_batch_size=3")
    assert {status for status, _ in found.values()} == {"ok", "note"}, found
    workarounds = found["workarounds for verl"][1]
    assert "freeze-vision" in workarounds and ("vision-language-value-model" in workarounds) == (not PATCHED)
    assert found["data"][1] == "3 rows, 0 rejected" and "plugin in a Ray worker" not in found
    assert not (tmp_path / "out").exists()
    found = looked_at(*recipe, "data.train_batch_size=4", "steer.sft.freeze_vision=false")
    assert found["data"][0] == "fail" and "lower it" in found["data"][1]
    assert found["steer node"] == ("ok", "valid; vision tower and projector trained")
    [*_, (status, said)] = looked_at(*recipe, "data.train_fils=a").values()
    assert status == "fail" and "train_fils" in said


def test_stage_two_has_no_tutor_to_test():
    findings, reports = run_canaries(["+recipe=steer_sft"], None, None, 0)
    assert not reports and "stage II" in next(f.detail for f in findings if f.name == "steer node")
