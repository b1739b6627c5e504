"""Each patch's own test runs under a verl that is chosen for it, never in the process that collects it.

`test_patches.py` runs the other files of this folder in processes of their own (`runner.py`), once against
unmodified verl and once against a copy with the patch. A test with the mark `unpatched` shows the fault: it
must fail without the patch, with those words, and pass with it. A test without the mark shows what the patch
leaves alone: it passes both times.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DRIVER = "test_patches.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "VERL_STEER_PATCH_TEST" in os.environ:
        return
    here = Path(__file__).parent
    elsewhere = [item for item in items if item.path.parent == here and item.path.name != DRIVER]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture
def classes_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives transformers' Qwen2.5-VL its own methods back after verl's `apply_monkey_patch`."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    for name in ("Qwen2_5_VLAttention", "Qwen2_5_VLModel", "Qwen2_5_VLForConditionalGeneration"):
        monkeypatch.setattr(getattr(modeling, name), "forward", getattr(modeling, name).forward)


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen2.5-VL."""
    from tiny_model import build_tiny_vlm

    return build_tiny_vlm(tmp_path_factory.mktemp("tiny") / "vlm")
