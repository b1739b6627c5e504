"""Whole runs with a tutor that fails: an outage waited out, one that ends the run, and faults that stay."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from main_ppo import SMALL, main_ppo, series
from tiny_model import build_tiny_vlm

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.records import read_records
from verl_steer.testing.faults import FaultPlan, faulty
from verl_steer.testing.server import Completion, Server, serve

pytestmark = pytest.mark.train

KEY = "sk-planted-7c1e55d0a9"


@pytest.fixture
def base(tmp_path: Path):
    build_tiny_vlm(tmp_path / "student")
    scripts = [
        Script(f"seed-{n}", Kind.RED_TEAM if n % 2 else Kind.BENIGN, (UserTurn(f"question {n}"), UserTurn("and?")))
        for n in range(24)
    ]
    write_rows([script_to_row(s, n, "rl") for n, s in enumerate(scripts)], tmp_path / "rl.parquet")
    return (
        "+recipe=steer_grpo",
        "steer.tutor.kind=endpoint",
        "steer.tutor.model=tutor",
        *SMALL,
        f"actor_rollout_ref.model.path={tmp_path}/student",
        f"data.train_files={tmp_path}/rl.parquet",
        f"data.val_files={tmp_path}/rl.parquet",
        f"trainer.default_local_dir={tmp_path}/out",
    )


def tutor(body: dict) -> Completion:
    """Scores by the prompt's characters, so that groups differ."""
    breach = sum(map(ord, json.dumps(body["messages"]))) % 3 == 0
    safety, usefulness = (1, 1) if breach else (8, 6)
    reply = {"reason": "by its letters", "safety": safety, "usefulness": usefulness, "faithfulness": 5}
    return Completion(json.dumps({**reply, "strategy": "deepen", "next_question": "and deeper?"}))


class Switchable:
    """A tutor that can go and come back at the same address."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.server: Server = self._stack.enter_context(serve(tutor))
        self._port = int(self.server.base_url.rsplit(":", 1)[1].split("/")[0])
        self.url = self.server.base_url

    def down(self) -> None:
        self._stack.close()

    def up(self) -> None:
        self.server = self._stack.enter_context(serve(tutor, port=self._port))


@pytest.mark.heavy
def test_an_outage_is_waited_out_and_one_that_lasts_ends_the_run_which_then_resumes(base, tmp_path):
    switch, tracker = Switchable(), tmp_path / "out" / "latest_checkpointed_iteration.txt"
    overrides = (
        *base,
        f"steer.tutor.base_urls=[{switch.url}]",
        "steer.tutor.outage_s=20",
        "trainer.total_training_steps=4",
        "trainer.save_freq=2",
    )
    phase, went_down = "first calls", 0.0

    def steer_the_switch() -> bool:
        nonlocal phase, went_down
        if phase == "first calls" and len(switch.server.requests) >= 3:  # preflight's, and the first rollouts'
            switch.down()
            phase, went_down = "short outage", time.monotonic()
        elif phase == "short outage" and time.monotonic() - went_down > 5:
            switch.up()
            phase = "back"
        elif phase == "back" and tracker.is_file() and tracker.read_text() == "2":
            switch.down()
            phase = "gone"
        return False

    status, output = main_ppo(tmp_path, *overrides, until=steer_the_switch)
    assert (status, phase) == (1, "gone"), output[-6000:]
    assert "tutor: no endpoint serves" in output and "tutor: serves again after" in output
    assert "TutorOutage: the tutor is gone: no endpoint of the model 'tutor' has served" in output
    assert "The same command resumes from step 2" in output
    steps = series(output, "training/global_step")
    assert steps[:2] == [1.0, 2.0] and 4.0 not in steps

    switch.up()
    status, output = main_ppo(tmp_path, *overrides)
    switch.down()
    assert status == 0, output[-6000:]
    assert "resumes from step 2" in output and series(output, "training/global_step") == [3.0, 4.0]
    records = list(read_records(tmp_path / "out" / "records", "train"))
    assert [sum(r["step"] == s for r in records) for s in (1, 2, 3, 4)] == [8] * 4
    assert {t["outcome"] for r in records for t in r["turns"]} == {"ok"}, "no outage became an outcome"
    assert not any(r["masked"] for r in records)


@pytest.mark.heavy
def test_five_steps_with_faults_that_stay_finish_invent_no_score_and_show_no_key(base, tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_TEST_KEY", KEY)
    ray_folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a socket's path must be short
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    plan = FaultPlan(seed=5, rate=0.3, hang_s=60.0, huge_bytes=2**21)
    broken = faulty(tutor, plan)

    async def handler(body):
        # The probe of preflight must pass: it is about the set-up, and a tutor that fails there is refused.
        return tutor(body) if "What does this picture show?" in json.dumps(body) else await broken(body)

    try:
        with serve(handler, api_key=KEY) as server:
            status, output = main_ppo(
                tmp_path,
                *base,
                f"steer.tutor.base_urls=[{server.base_url}]",
                "steer.tutor.api_key_env=STEER_TEST_KEY",
                "steer.tutor.timeout_s=3",
                f"steer.tutor.audit_dir={tmp_path}/audit",
                "trainer.total_training_steps=5",
                "trainer.save_freq=5",
                timeout_s=900,
            )
        assert status == 0, output[-6000:]
        assert series(output, "training/global_step") == [1.0, 2.0, 3.0, 4.0, 5.0]
        losses = series(output, "actor/pg_loss")
        assert len(losses) == 5 and all(map(math.isfinite, losses))
        leaks = [str(p) for root in (tmp_path, ray_folder) for p in root.rglob("*") if _holds(p, KEY)]
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    assert leaks == [] and sum(1 for _ in tmp_path.rglob("*")) > 20

    records = list(read_records(tmp_path / "out" / "records", "train"))
    turns = [t for r in records for t in r["turns"]]
    assert len(records) == 40 and plan.hits
    missing = [t for t in turns if t["outcome"] != "ok"]
    assert 0.1 < len(missing) / len(turns) < 0.5, "a repair may cure a broken reply, nothing else does"
    assert all(t["scores"] is None and t["reward"] is None for t in missing), "no score was invented"
    assert all(t["scores"] for t in turns if t["outcome"] == "ok")
    for record in records:
        lacks = any(t["scores"] is None for t in record["turns"])
        assert record["masked"] is lacks and (record["return"] is None) is lacks
    audited = [json.loads(line) for p in (tmp_path / "audit").glob("*.jsonl") for line in p.read_text().splitlines()]
    assert len(audited) >= len(turns) and {a["outcome"] for a in audited} > {"ok"}
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in (tmp_path / "audit").glob("*.jsonl"))


def _holds(path: Path, secret: str) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    try:
        return secret.encode() in path.read_bytes()
    except FileNotFoundError:  # Ray's processes still tidy up
        return False


def test_the_search_for_the_key_finds_one(tmp_path):
    (tmp_path / "log").write_text(f"x{KEY}x")
    assert _holds(tmp_path / "log", KEY) and not _holds(tmp_path, KEY) and os.sep in str(tmp_path)
