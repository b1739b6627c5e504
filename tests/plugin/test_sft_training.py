"""Stage II through verl's own SFT trainer, and its checkpoint as the student that stage III starts from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from main_ppo import SMALL, main_ppo, series
from PIL import Image
from sft_trainer import sft_trainer
from tiny_model import build_tiny_vlm

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.data.schemas import SftRow
from verl_steer.data.splits import LAYOUTS, table
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.plugin.freeze import KEY, VISION_MODULES

pytestmark = pytest.mark.train


def picture(side: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, format="PNG")
    return ImageRef(buffer.getvalue())


def rows() -> list[SftRow]:
    """Dialogues of 2 and 3 turns; every second one shows no picture, and half of the others show it in turn 2."""
    made = []
    for n in range(8):
        at = None if n % 2 == 0 else (n // 2) % 2
        turns = [
            {"text": f"question {n} {t}", "reply": f"answer {n} {t}", "images": (picture(56),) if t == at else ()}
            for t in range(2 + n % 2)
        ]
        made.append(SftRow(id=f"row-{n}", source="test", kind="benign", turns=turns))
    return made


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    assert found, f"{folder} holds no weights"
    return found


def test_sft_trains_what_is_not_frozen_and_grpo_starts_from_its_checkpoint(tmp_path):
    import torch

    student = build_tiny_vlm(tmp_path / "student")
    pq.write_table(table(LAYOUTS["sft"], rows()), tmp_path / "sft.parquet")
    status, output = sft_trainer(
        tmp_path,
        "+recipe=steer_sft",
        f"model.path={student}",
        f"data.train_files={tmp_path}/sft.parquet",
        f"trainer.default_local_dir={tmp_path}/sft",
        "data.train_batch_size=4",
        "data.max_length=256",
        "optim.lr=1e-3",
        "trainer.total_epochs=2",
    )
    assert status == 0, output[-6000:]
    assert "preflight passed; 8 rows, 0 rejected; a new run" in output
    assert "8 rows in = 8 kept + 0 rejected" in output
    assert "vision tower and projector frozen" in output
    losses = series(output, "train/loss")
    assert len(losses) == 4 and losses[-1] < losses[0]

    trained = tmp_path / "sft" / "global_step_4" / "huggingface"
    before, after = weights(student), weights(trained)
    assert before.keys() == after.keys()
    seeing = {name for name in before if set(name.split(".")) & set(VISION_MODULES)}
    assert seeing and seeing != before.keys()
    for name, value in before.items():
        same = torch.equal(value.float(), after[name].float())
        assert same == (name in seeing), f"{name}: {'unchanged' if same else 'changed'}"
    assert KEY not in (trained / "config.json").read_text()

    script = Script("seed", Kind.RED_TEAM, (UserTurn("what is this?", (picture(56),)), UserTurn("and now?")))
    write_rows([script_to_row(script, n, "rl") for n in range(4)], tmp_path / "rl.parquet")
    status, output = main_ppo(
        tmp_path,
        "+recipe=steer_grpo",
        "steer.tutor.kind=microworld",
        *SMALL,
        f"actor_rollout_ref.model.path={trained}",
        f"data.train_files={tmp_path}/rl.parquet",
        f"data.val_files={tmp_path}/rl.parquet",
        f"trainer.default_local_dir={tmp_path}/rl",
        "trainer.total_training_steps=1",
    )
    assert status == 0, output[-6000:]
    assert series(output, "training/global_step") == [1.0]
    assert max(series(output, "training/rollout_probs_diff_max")) <= 1e-6
    records = (tmp_path / "rl" / "records" / "train" / "step_000001.jsonl").read_text().splitlines()
    assert len(records) == 8 and all(json.loads(line)["turns"] for line in records)
