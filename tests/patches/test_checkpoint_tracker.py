"""patches/checkpoint-tracker.patch"""

import builtins
import errno
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

TRACKER = "latest_checkpointed_iteration.txt"


def save(folder, step):
    """The V1 trainer's `_save_checkpoint`, with workers that save nothing."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    (folder / f"global_step_{step}").mkdir(exist_ok=True)
    config = OmegaConf.create(
        {
            "trainer": {"default_local_dir": str(folder), "default_hdfs_dir": None},
            "actor_rollout_ref": {"actor": {}},
        }
    )
    PPOTrainer._save_checkpoint(
        SimpleNamespace(
            config=config,
            global_steps=step,
            use_critic=False,
            trainer_mode="sync",
            actor_rollout_wg=SimpleNamespace(save_checkpoint=lambda *args, **kwargs: None),
            train_dataloader=SimpleNamespace(state_dict=lambda: {}),
            checkpoint_callback=SimpleNamespace(on_save=lambda **kwargs: None),
        )
    )


@pytest.mark.unpatched("ValueError: invalid literal for int")
def test_a_save_that_is_cut_short_leaves_the_last_checkpoint_to_resume_from(tmp_path, monkeypatch):
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    save(tmp_path, 1)
    real_open = builtins.open

    def full_disk(path, mode="r", *args, **kwargs):
        opened = real_open(path, mode, *args, **kwargs)
        if TRACKER not in str(path) or "w" not in mode:
            return opened

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                opened.close()

            def write(self, text):
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_1")


def test_a_save_names_its_step(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert (tmp_path / TRACKER).read_text() == "2"
    assert [path.name for path in tmp_path.glob("*.txt*")] == [TRACKER]
