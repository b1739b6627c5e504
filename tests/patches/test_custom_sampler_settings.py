"""patches/custom-sampler-settings.patch"""

import logging

import pytest
from omegaconf import OmegaConf

SETTINGS = (
    "filter_groups_metric",
    "sync_refill_failed_groups",
    "train_batch_size",
    "gen_batch_size",
    "max_inflight_gen_batches",
)
SAMPLERS = """
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

class Inheriting(ReplayBuffer):
    pass

class Forwarding(ReplayBuffer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

class Async(ReplayBufferAsync):
    pass

class Explicit:
    def __init__(self, trainer_mode, trainer_config, max_off_policy_threshold, max_off_policy_strategy,
                 sampler_kwargs, refill_fn):
        self.taken = sorted(k for k in locals() if k not in ("self", "__class__"))
"""


def config(sampler=None, mode="sync", filtering=True, refill=False):
    custom = None if sampler is None else {"path": sampler[0], "name": sampler[1]}
    return OmegaConf.create(
        {
            "algorithm": {"filter_groups": {"enable": filtering, "metric": "acc", "max_inflight_gen_batches": 3}},
            "data": {"train_batch_size": 8, "gen_batch_size": 4},
            "reward": {"reward_model": {"enable": False}},
            "trainer": {
                "v1": {
                    "sampler": {
                        "custom_sampler": custom,
                        "max_off_policy_threshold": None,
                        "max_off_policy_strategy": "drop",
                        "sampler_kwargs": {},
                        "sync_refill_failed_groups": refill,
                    },
                    mode: {},
                }
            },
        }
    )


def build(configuration, mode="sync"):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    class Trainer(PPOTrainer):
        def __init__(self):
            self.config, self.trainer_mode = configuration, mode

        def _add_prompts_to_generate(self, count):
            raise AssertionError("nothing is generated here")

    Trainer.__abstractmethods__ = frozenset()
    return Trainer()._build_replay_buffer()


@pytest.fixture
def samplers(tmp_path):
    path = tmp_path / "samplers.py"
    path.write_text(SAMPLERS)
    return str(path)


@pytest.mark.unpatched("assert None == 'acc'")
@pytest.mark.parametrize(
    ("name", "mode"), [("Inheriting", "sync"), ("Forwarding", "sync"), ("Async", "colocate_async")]
)
def test_a_custom_sampler_filters_groups_as_the_built_in_one_would(samplers, name, mode):
    own = build(config((samplers, name), mode), mode)
    built_in = build(config(None, mode), mode)
    assert own.filter_groups_metric == "acc"
    assert {s: getattr(own, s) for s in SETTINGS} == {s: getattr(built_in, s) for s in SETTINGS}


@pytest.mark.unpatched("assert False is True")
def test_a_custom_sampler_replaces_failed_groups_if_told_to(samplers):
    buffer = build(config((samplers, "Inheriting"), filtering=False, refill=True))
    assert buffer.sync_refill_failed_groups is True
    assert buffer.gen_batch_size == 1


@pytest.mark.unpatched("assert 'Explicit takes no")
def test_a_sampler_that_cannot_take_the_settings_keeps_its_signature_and_is_named(samplers, caplog):
    with caplog.at_level(logging.WARNING):
        buffer = build(config((samplers, "Explicit")))
    assert "filter_groups_metric" not in buffer.taken
    assert "Explicit takes no filter_groups_metric" in caplog.text


def test_nothing_new_is_passed_while_nothing_is_filtered(samplers, caplog):
    with caplog.at_level(logging.WARNING):
        assert "refill_fn" in build(config((samplers, "Explicit"), filtering=False)).taken
        assert build(config((samplers, "Forwarding"), filtering=False)).train_batch_size is None
    assert "takes no" not in caplog.text
