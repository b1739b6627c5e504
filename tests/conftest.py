"""Shared by all tests."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import settings

# What trains here trains on the CPU. A GPU build of torch never chooses it by itself, and waits for GPUs instead.
os.environ.setdefault("VERL_STEER_DEVICE", "cpu")

# A deadline per example measures the machine, not the code: on a busy one it fails at random.
settings.register_profile("verl_steer", deadline=None)
settings.load_profile("verl_steer")


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a process group of one; it is destroyed afterwards."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **address}.items():
        monkeypatch.setenv(name, value)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
