"""Four hundred dialogues that nobody here wrote, trained on with the tutor in another process over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic, sleep

import pytest
from main_ppo import SMALL, main_ppo, series
from PIL import Image
from tiny_model import build_tiny_vlm

from verl_steer.cli import main as verl_steer
from verl_steer.records import read_records

COSAFE = Path(__file__).parents[3] / "shared" / "real" / "cosafe"

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(not COSAFE.is_dir(), reason="the CoSafe files are not part of the project"),
]


@pytest.fixture
def tutor_url():
    """`verl-steer serve microworld` in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "verl_steer.cli", "serve", "microworld", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{port}", monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and monotonic() < deadline, "the tutor did not come up"
                sleep(0.2)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.parametrize("image_turn", [pytest.param(1, marks=pytest.mark.heavy), 2])
def test_every_turn_of_400_real_dialogues_has_an_outcome_on_record(tmp_path, capsys, tutor_url, image_turn):
    Image.new("RGB", (56, 56), "navy").save(tmp_path / "picture.png")
    picture = ["--image", str(tmp_path / "picture.png"), "--image-turn", str(image_turn)]
    assert (
        verl_steer(
            ["data", "convert", "cosafe", str(COSAFE), "--to", "rl", "--out", str(tmp_path / "rl.parquet"), *picture]
        )
        == 0
    )
    account = capsys.readouterr().out
    build_tiny_vlm(tmp_path / "student")
    status, output = main_ppo(
        tmp_path,
        "+recipe=steer_grpo",
        *SMALL,
        "data.train_batch_size=200",
        "data.max_prompt_length=400",
        "data.max_response_length=768",
        "data.on_bad_row=reject",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
        f"actor_rollout_ref.model.path={tmp_path}/student",
        f"data.train_files={tmp_path}/rl.parquet",
        f"data.val_files={tmp_path}/rl.parquet",
        f"trainer.default_local_dir={tmp_path}/out",
        "trainer.total_training_steps=2",
        "steer.tutor.kind=endpoint",
        "steer.tutor.model=microworld-tutor",
        f"steer.tutor.base_urls=[{tutor_url}]",
        "steer.tutor.max_concurrency=32",
        timeout_s=900,
    )
    assert status == 0, output[-6000:]
    records = list(read_records(tmp_path / "out" / "records", "train"))
    rejected = [
        json.loads(line) for line in (tmp_path / "out" / "records" / "rejected_rl.jsonl").read_text().splitlines()
    ]
    trained = {r["seed_id"] for r in records}
    assert account.startswith("400 rows in = ")
    written = int(account.split("= ")[1].split(" written")[0])
    assert written + int(account.split("+ ")[1].split(" rejected")[0]) == 400
    assert len(trained) + len(rejected) == written and all(r["reason"] for r in rejected)
    assert len(records) == 2 * 200 * 2 and not {r["seed_id"] for r in rejected} & trained
    turns = [t for r in records for t in r["turns"]]
    assert all(t["outcome"] == "ok" and t["scores"] and t["tutor_calls"] >= 1 for t in turns)
    assert all(len(r["turns"]) == r["planned_turns"] for r in records)
    assert all([len(t["images"]) for t in r["turns"]][image_turn - 1] == 1 for r in records)
    assert max(series(output, "training/rollout_probs_diff_max")) <= 1e-6
