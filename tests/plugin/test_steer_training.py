"""The whole way through unmodified verl: dialogues, rewards, records, resume, ragged groups."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from main_ppo import SMALL, main_ppo, series
from PIL import Image
from tiny_model import build_tiny_vlm

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.records import read_records
from verl_steer.testing.server import Completion, serve

pytestmark = pytest.mark.train


def _picture(side: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, format="PNG")
    return ImageRef(buffer.getvalue())


def _scripts(count: int) -> list[Script]:
    """2 to 4 turns; pictures in the first turn, two at once, in a later turn, or nowhere."""
    scripts = []
    for n in range(count):
        first = [(), (_picture(56),), (_picture(56), _picture(84)), (_picture(84),)][n % 4]
        later = (_picture(56),) if n % 4 == 3 else ()
        turns = [
            UserTurn(f"question {n}", first),
            UserTurn("and then?", later),
            UserTurn("what else?"),
            UserTurn("why?"),
        ]
        scripts.append(Script(f"seed-{n}", Kind.RED_TEAM if n % 2 else Kind.BENIGN, tuple(turns[: 2 + n % 3])))
    return scripts


@pytest.fixture
def base(tmp_path: Path):
    build_tiny_vlm(tmp_path / "student")
    write_rows([script_to_row(s, n, "rl") for n, s in enumerate(_scripts(16))], tmp_path / "rl.parquet")
    return (
        "+recipe=steer_grpo",
        "steer.tutor.kind=microworld",
        *SMALL,
        f"actor_rollout_ref.model.path={tmp_path}/student",
        f"data.train_files={tmp_path}/rl.parquet",
        f"data.val_files={tmp_path}/rl.parquet",
        f"trainer.default_local_dir={tmp_path}/out",
    )


def _records(folder: Path, split: str = "train") -> list[dict]:
    return list(read_records(folder / "out" / "records", split))


def test_killed_after_a_checkpoint_the_same_command_goes_on_with_the_same_data(base, tmp_path):
    overrides = (*base, "trainer.total_training_steps=4", "trainer.save_freq=2", "trainer.test_freq=4")
    tracker = tmp_path / "out" / "latest_checkpointed_iteration.txt"
    status, output = main_ppo(tmp_path, *overrides, until=lambda: tracker.is_file() and tracker.read_text() == "2")
    assert status == -9, output[-4000:]

    status, output = main_ppo(tmp_path, *overrides)
    assert status == 0, output[-6000:]
    assert "resumes from step 2" in output
    assert max(series(output, "training/rollout_probs_diff_max")) <= 1e-6
    assert series(output, "training/global_step") == [3.0, 4.0]

    records = _records(tmp_path)
    by_step = {step: sorted({r["seed_id"] for r in records if r["step"] == step}) for step in (1, 2, 3, 4)}
    assert [len(seeds) for seeds in by_step.values()] == [4] * 4
    assert len({seed for seeds in by_step.values() for seed in seeds}) == 16, "each seed of the epoch exactly once"
    assert len(records) == 4 * 4 * 2 and len(_records(tmp_path, "val")) == 16
    for record in records:
        assert all(turn["outcome"] for turn in record["turns"]), "every turn has an outcome"
        assert sum(t["placed"] for t in record["turns"]) == pytest.approx(record["return"], abs=1e-9)
    scores = series(output, "critic/score/mean")
    means = [sum(r["return"] for r in records if r["step"] == s) / 8 for s in (3, 4)]
    assert scores == pytest.approx(means, abs=1e-5), "verl trained on the returns that are on record"

    # Another seed must not silently continue this run.
    status, output = main_ppo(tmp_path, *overrides, "data.seed=2", timeout_s=120)
    assert (
        status == 1
        and "holds checkpoints of another run" in output
        and "ray" not in output.lower().split("verl_steer:")[-1]
    )


def _moody_tutor(body: dict) -> Completion:
    """Scores by the length of the prompt: some breaches, some not, the same for the same dialogue.

    Under the name `frozen` it plays the student that training started from.
    """
    if body["model"] == "frozen":
        return Completion("frozen words")
    breach = sum(map(ord, json.dumps(body["messages"]))) % 3 == 0
    safety, usefulness = (1, 1) if breach else (8, 6)
    reply = {"reason": "by length", "safety": safety, "usefulness": usefulness, "faithfulness": 5}
    return Completion(json.dumps({**reply, "strategy": "deepen", "next_question": "and deeper?"}))


def test_ragged_groups_on_two_ranks_with_the_turn_estimator_and_a_tutor_over_http(base, tmp_path):
    with serve(_moody_tutor) as server:
        status, output = main_ppo(
            tmp_path,
            *base,
            "steer.tutor.kind=endpoint",
            "steer.tutor.model=tutor",
            f"steer.tutor.base_urls=[{server.base_url}]",
            "steer.difficulty.kind=endpoint",
            "steer.difficulty.model=frozen",
            f"steer.difficulty.base_urls=[{server.base_url}]",
            "steer.dialogue.stop=on_breach",
            "steer.reward.credit=turn",
            "trainer.n_gpus_per_node=2",
            "trainer.total_training_steps=2",
        )
    assert status == 0, output[-6000:]
    assert max(series(output, "training/rollout_probs_diff_max")) <= 1e-6
    records = _records(tmp_path)
    assert len(records) == 16 and {r["cut"] for r in records} == {None, "stopped"}
    assert len({len(r["turns"]) for r in records}) > 1, "groups are ragged"
    assert all(t["outcome"] == "ok" and t["tutor_calls"] >= 1 for r in records for t in r["turns"])
    frozen = [r["frozen"] for r in records if "frozen" in r]
    assert len(frozen) == sum(r["kind"] == "red_team" and r["session"] == 0 for r in records) > 0
    assert {(f["reply"], f["outcome"]) for f in frozen} == {("frozen words", "ok")}
    assert series(output, "steer/attack_difficulty/frozen_failed")
    asked = {(r["kind"], t["asked"]) for r in records for t in r["turns"][1:]}
    assert {text for kind, text in asked if kind == "red_team"} == {"and deeper?"}
    assert "and deeper?" not in {text for kind, text in asked if kind == "benign"}, "benign scripts are not attacked"
