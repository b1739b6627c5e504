"""The workarounds mend what they name, and a verl that carries the patch switches them off."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import patched_verl
import pytest
import torch

from verl_steer.plugin import compat

#: Set where the suite runs on a verl that carries all patches (tests/run.sh --patched).
PATCHED = "VERL_STEER_PATCHED_VERL" in os.environ


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("length", [4, 7])
def test_equal_lengths_keep_their_positions(batch: int, length: int) -> None:
    rows = [torch.arange(4 * length).view(4, length) + 1000 * i for i in range(batch)]
    fixed = compat.ragged_in_length(jagged(rows))
    assert fixed._ragged_idx == 2
    torch.testing.assert_close(fixed.values(), torch.cat(rows, dim=1))
    assert fixed.offsets().tolist() == [i * length for i in range(batch + 1)]


def test_unequal_lengths_that_pickling_has_confused_are_declared_again() -> None:
    from verl.utils.tensordict_utils import nested_tensor_from_tensor_list

    rows = [torch.arange(20).view(4, 5), torch.arange(12).view(4, 3)]
    nested = nested_tensor_from_tensor_list(rows, ragged_idx=2)
    nested._ragged_idx = 1
    fixed = compat.ragged_in_length(nested)
    assert fixed._ragged_idx == 2
    torch.testing.assert_close(fixed.values(), torch.cat(rows, dim=1))


def test_every_workaround_is_in_force_on_the_pinned_verl_and_on_none_that_carries_its_patch() -> None:
    compat.install(cpu=True)
    assert {w.name: w.in_force for w in compat.workarounds()} == {w.name: not PATCHED for w in compat.workarounds()}


@pytest.mark.parametrize("workaround", compat.workarounds(), ids=lambda w: w.name)
def test_a_patched_verl_switches_the_workaround_off(workaround: compat.Workaround, tmp_path: Path) -> None:
    if shutil.which("patch") is None:
        pytest.skip("the program patch is not installed")
    name = Path(*workaround.module.split(".")).with_suffix(".py")
    target = tmp_path / name
    target.parent.mkdir(parents=True)
    shutil.copy(patched_verl.wheel().parent / name, target)
    assert workaround.faulty(_loaded(target))
    subprocess.run(
        ["patch", "-p1", "-i", str(patched_verl.ROOT / workaround.patch)], cwd=tmp_path, check=True, capture_output=True
    )
    assert not workaround.faulty(_loaded(target))


def _loaded(path: Path) -> ModuleType:
    """The module run from this file, under a name that nobody waits for."""
    import importlib.util
    import linecache

    linecache.clearcache()
    spec = importlib.util.spec_from_file_location(f"copy_of_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
