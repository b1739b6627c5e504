"""When training without a GPU chooses itself, and what it then offers to verl."""

from __future__ import annotations

import pytest
import torch

from verl_steer.plugin.cpu import is_cpu


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.delenv("VERL_STEER_DEVICE", raising=False)


def test_a_gpu_build_of_torch_is_never_turned_into_a_cpu_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    # As in an actor that sees no GPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not is_cpu()


def test_a_cpu_build_of_torch_trains_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert is_cpu()


@pytest.mark.parametrize(("device", "chosen"), [("cpu", True), ("cuda", False)])
def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, device: str, chosen: bool) -> None:
    monkeypatch.setattr(torch.version, "cuda", None if device == "cuda" else "12.8")
    monkeypatch.setenv("VERL_STEER_DEVICE", device)
    assert is_cpu() is chosen
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    assert not is_cpu()


def test_an_unknown_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_STEER_DEVICE", "gpu0")
    with pytest.raises(ValueError, match="must be cpu, cuda or auto"):
        is_cpu()
