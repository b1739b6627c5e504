"""The smallest world that can be built: seconds, and a student that knows nothing."""

import importlib.util

import pytest

from verl_steer.microworld.sizes import WarmupConfig, WorldConfig

TINY = WorldConfig(
    rl_pairs=6,
    probe_pairs=3,
    warmup=WarmupConfig(
        pictures=24,
        vision_steps=2,
        vision_batch=8,
        exercises=24,
        base_steps=2,
        lesson_pairs=3,
        manner_steps=2,
        manner_batch=4,
    ),
)


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("transformers' Qwen2.5-VL processor needs torchvision")
    import torch

    from verl_steer.microworld.prepare import ensure

    torch.set_num_threads(1)
    return ensure(tmp_path_factory.mktemp("worlds"), 5, TINY, quiet=True)
