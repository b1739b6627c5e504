"""A Qwen3-VL student: its rollout agrees with the model itself, and trains through verl."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from main_ppo import SMALL, main_ppo, series
from PIL import Image
from test_hf_rollout import Student, Turn, run
from tiny_qwen3 import build_tiny_qwen3_vl

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.plugin.cpu.request import Request
from verl_steer.plugin.cpu.sampling import SamplingSettings
from verl_steer.testing.server import Completion, serve

RED, BLUE = Image.new("RGB", (64, 64), (200, 30, 30)), Image.new("RGB", (96, 64), (30, 30, 200))
TURNS: list[Turn] = [("short", []), ("one picture", [RED]), ("two pictures and more text " * 3, [BLUE, RED])]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student(build_tiny_qwen3_vl(tmp_path_factory.mktemp("student")))


def test_log_probs_equal_a_full_forward_with_deepstack(student: Student) -> None:
    requests = [student.request(turn) for turn in TURNS]
    for request, reply, (_, images) in zip(requests, run(student.engine(), *requests), TURNS, strict=True):
        ids = request.prompt.token_ids + reply.token_ids
        expected = student.teacher_forced(ids, images, 1.0)[-len(reply.token_ids) :]
        torch.testing.assert_close(torch.tensor(reply.log_probs), expected, atol=1e-5, rtol=0)


def test_a_picture_of_a_later_turn_joins_a_cached_one(student: Student) -> None:
    engine = student.engine()
    first = student.request(("look", [RED]), max_tokens=5)
    run(engine, first)
    ids = first.prompt.token_ids + first.reply.token_ids + student.tokens("and this one?", [BLUE])
    second = Request.make(student.builder.build(ids, [RED, BLUE]), SamplingSettings(max_tokens=4, seed=3))
    run(engine, second)
    expected = student.teacher_forced(ids + second.reply.token_ids, [RED, BLUE], 1.0)[-4:]
    torch.testing.assert_close(torch.tensor(second.reply.log_probs), expected, atol=1e-5, rtol=0)


def _picture(side: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "PNG")
    return ImageRef(buffer.getvalue())


def _moody_tutor(body: dict) -> Completion:
    """Scores that differ between siblings, so that there is a gradient."""
    safety, usefulness = (1, 1) if sum(map(ord, json.dumps(body["messages"]))) % 2 else (8, 6)
    reply = {"reason": "by length", "safety": safety, "usefulness": usefulness, "faithfulness": 5}
    return Completion(json.dumps({**reply, "strategy": "deepen", "next_question": "and deeper?"}))


@pytest.mark.train
@pytest.mark.heavy
def test_two_steps_through_main_ppo_agree_with_the_rollout(tmp_path: Path) -> None:
    """Pictures in the first turn, two at once, in a later turn, and none: positions and DeepStack of every kind."""
    build_tiny_qwen3_vl(tmp_path / "student")
    small, wide = _picture(64), _picture(96)
    shown = [((), ()), ((small,), ()), ((wide, small), ()), ((), (small,))]
    scripts = [
        Script(f"seed-{n}", Kind.RED_TEAM, (UserTurn(f"question {n}", first), UserTurn("and then?", later)))
        for n, (first, later) in enumerate(shown * 2)
    ]
    write_rows([script_to_row(script, n, "rl") for n, script in enumerate(scripts)], tmp_path / "rl.parquet")
    with serve(_moody_tutor) as server:
        status, output = main_ppo(
            tmp_path,
            "+recipe=steer_grpo",
            *SMALL,
            "steer.tutor.kind=endpoint",
            "steer.tutor.model=tutor",
            f"steer.tutor.base_urls=[{server.base_url}]",
            f"actor_rollout_ref.model.path={tmp_path}/student",
            f"data.train_files={tmp_path}/rl.parquet",
            f"data.val_files={tmp_path}/rl.parquet",
            f"trainer.default_local_dir={tmp_path}/out",
            "trainer.total_training_steps=2",
        )
    assert status == 0, output[-6000:]
    differences = series(output, "training/rollout_probs_diff_max")
    assert len(differences) == 2 and max(differences) <= 1e-6
    gradients = series(output, "actor/grad_norm")
    assert len(gradients) == 2 and all(math.isfinite(g) and g > 0 for g in gradients)
