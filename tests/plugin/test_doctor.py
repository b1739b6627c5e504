"""The doctor names what is wrong and what to do, and says nothing else on its JSON channel."""

import json
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
    code, report = doctor(*recipe, "data.train_batch_size=3")
    assert code == 0 and status(report)["data"] == "ok" and "plugin in a Ray worker" not in status(report), report
    assert not (tmp_path / "out").exists()
    code, report = doctor(*recipe, "data.train_batch_size=4", "steer.sft.freeze_vision=false")
    said = {f["name"]: f["detail"] for f in report["findings"]}
    assert code == 1 and "lower it" in said["data"] and "trained" in said["steer node"]
    code, report = doctor(*recipe, "data.train_fils=a")
    assert code == 1 and "train_fils" in next(f["detail"] for f in report["findings"] if f["status"] == "fail")


def test_stage_two_has_no_tutor_to_test():
    code, report = doctor("--canaries", "+recipe=steer_sft")
    assert code == 1 and "stage II" in next(f["detail"] for f in report["findings"] if f["name"] == "steer node")
