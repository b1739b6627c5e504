"""Makes a model of a LoRA run's checkpoint: what transformers, vLLM and the bench load.

    python -m verl_steer.local.merge_lora checkpoints/my_run/global_step_100 --out merged

verl's own merger writes the base and the adapter beside each other; a folder like that loads as the base alone, without a word. Here
peft merges the two, and the folder appears when it is whole.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from verl_steer.local.checkpoint import LORA, CheckpointError, model_of


def merge(step: Path, out: Path) -> Path:
    """Merges the adapter of a checkpoint into its base.

    Args:
        step: A `global_step_N` of a LoRA run, or its `actor` folder.
        out: The folder to write; must not exist.

    Returns:
        `out`: weights in bfloat16, configuration, tokenizer and processor.

    Raises:
        CheckpointError: `step` is no checkpoint of a LoRA run, `out` exists, or verl's merger failed.
    """
    folder = next((f for f in (step / "actor", step) if (f / LORA).is_file()), None)
    if folder is None:
        raise CheckpointError(
            f"{step} holds no {LORA}: give a global_step_N of a run with actor_rollout_ref.model.lora_rank > 0"
        )
    if out.exists():
        raise CheckpointError(f"{out} exists; give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        apart, whole = Path(temporary) / "apart", Path(temporary) / "whole"
        merger = (sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp")
        done = subprocess.run([*merger, "--local_dir", str(folder), "--target_dir", str(apart)], check=False)
        if done.returncode:
            raise CheckpointError(
                f"verl.model_merger ended with status {done.returncode} on {folder}; its output says why"
            )
        _merge_adapter(apart, whole)
        whole.rename(out)
    return out


def _merge_adapter(apart: Path, whole: Path) -> None:
    from peft import PeftModel

    adapter = apart / "lora_adapter"
    base = model_of(apart, "bfloat16")
    # Layers of the vision tower that share a name with an adapted one get an adapter of zeros here, which adds nothing.
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(whole)
    shutil.rmtree(adapter)
    for path in apart.iterdir():  # tokenizer, processor, templates; not the weights of the base
        if (
            path.is_file()
            and path.suffix != ".safetensors"
            and not (whole / path.name).exists()
            and "index" not in path.name
        ):
            shutil.copyfile(path, whole / path.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m verl_steer.local.merge_lora`."""
    parser = argparse.ArgumentParser(prog="python -m verl_steer.local.merge_lora", description=__doc__)
    parser.add_argument("step", type=Path, help="a global_step_N of a LoRA run")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{merge(given.step, given.out)}\n")
    except CheckpointError as error:
        sys.stderr.write(f"verl_steer: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
