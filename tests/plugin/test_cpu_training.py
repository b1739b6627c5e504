"""Real `main_ppo` runs without a GPU: verl's own agent loop, our platform, engine and rollout server."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from main_ppo import main_ppo, series
from tiny_model import build_tiny_vlm

REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Share of lower-case letters: every reply can score, and a random model's replies differ."""
    return sum(c.islower() for c in solution_str) / max(1, len(solution_str))
'''


def _picture(side: int, colour: tuple[int, int, int]) -> dict[str, bytes]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue()}


def _write_data(path: Path) -> None:
    """Batch 1: texts of many lengths, 0 to 2 pictures of several sizes. Batch 2: one length for all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    red, blue = _picture(56, (200, 30, 30)), _picture(84, (30, 30, 200))
    mixed = [
        ("no picture here", []),
        ("<image>one", [red]),
        ("first <image> and then a second one: <image>, compare them", [blue, red]),
        ("x" * 40 + " without a picture", []),
    ]
    equal = [(f"<image>same length {i}", [red]) for i in range(4)]
    rows = [
        {
            "data_source": "tiny",
            "prompt": [{"role": "user", "content": text}],
            "images": images,
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": number},
        }
        for number, (text, images) in enumerate(mixed + equal)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _train(folder: Path, *overrides: str) -> str:
    """Trains two steps in a process group of its own and returns what was printed."""
    build_tiny_vlm(folder / "student")
    _write_data(folder / "train.parquet")
    (folder / "reward.py").write_text(REWARD)
    status, output = main_ppo(
        folder,
        "+recipe=steer_cpu",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/train.parquet",
        *("data.train_batch_size=4", "data.shuffle=false", "data.seed=1", "data.dataloader_num_workers=0"),
        *("data.max_prompt_length=160", "data.max_response_length=8", "data.filter_overlong_prompts=false"),
        f"actor_rollout_ref.model.path={folder}/student",
        *("actor_rollout_ref.rollout.n=2", "actor_rollout_ref.rollout.calculate_log_probs=true"),
        *("actor_rollout_ref.rollout.ignore_eos=true", "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4"),
        *("actor_rollout_ref.actor.ppo_mini_batch_size=4", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"),
        *("actor_rollout_ref.actor.optim.lr=1e-3", "algorithm.adv_estimator=grpo"),
        f"reward.custom_reward_function.path={folder}/reward.py",
        *("trainer.use_v1=true", "trainer.logger=[console]", "trainer.val_before_train=false", "trainer.test_freq=-1"),
        *("trainer.total_training_steps=2", "trainer.save_freq=2", "trainer.nnodes=1"),
        f"trainer.default_local_dir={folder}/checkpoints",
        *overrides,
    )
    assert status == 0, output[-6000:]
    return output


def _assert_trained(folder: Path, output: str) -> None:
    differences = series(output, "training/rollout_probs_diff_max")
    assert len(differences) == 2
    assert max(differences) <= 1e-6
    gradients = series(output, "actor/grad_norm")
    assert len(gradients) == 2
    assert all(math.isfinite(g) and g > 0 for g in gradients)
    assert any((folder / "checkpoints" / "global_step_2" / "actor").glob("model_world_size_*.pt"))


@pytest.mark.train
def test_one_rank_agrees_with_its_rollout_and_writes_a_checkpoint(tmp_path: Path) -> None:
    _assert_trained(tmp_path, _train(tmp_path))


@pytest.mark.train
def test_two_ranks_with_a_reference_model_agree_with_their_rollouts(tmp_path: Path) -> None:
    output = _train(
        tmp_path,
        "trainer.n_gpus_per_node=2",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
    )
    _assert_trained(tmp_path, output)
    assert all(math.isfinite(v) for v in series(output, "actor/kl_loss"))
