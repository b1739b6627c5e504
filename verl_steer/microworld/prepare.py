"""Builds the embedded world at first use and finds it afterwards.

`paths` is pure and cheap: a recipe's resolver may call it in every process. `ensure` builds what is
missing, once, whoever else is starting at the same time: under a lock, in a folder of its own that
is renamed when everything in it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from verl_steer.microworld.sizes import WorldConfig


@dataclass(frozen=True)
class World:
    """Where the parts of a prepared world lie.

    Attributes:
        root: The world's own folder.
        student: The warmed student (model, tokenizer, processor).
        rl: Training rows (parquet, `data.rows.SCHEMA`).
        probe: Validation rows, the frozen probe.
    """

    root: Path
    student: Path
    rl: Path
    probe: Path

    @property
    def complete(self) -> bool:
        """Whether it has been built: the folder appears whole or not at all."""
        return (self.root / "world.json").is_file()


def paths(root: str | os.PathLike[str], seed: int, config: WorldConfig | None = None) -> World:
    """Where the world of a seed lies (or will lie) under `root`; touches nothing."""
    folder = Path(root) / f"microworld-{(config or WorldConfig()).fingerprint()}-seed{seed}"
    return World(folder, folder / "student", folder / "rl.parquet", folder / "probe.parquet")


def ensure(root: str | os.PathLike[str], seed: int, config: WorldConfig | None = None, quiet: bool = False) -> World:
    """Builds the world of a seed unless it is there; safe under concurrent starts.

    Args:
        root: Cache folder; made if missing.
        seed: The training seed: it fixes pictures, scripts, initial weights and the order of the warm-up.
        config: Sizes, part of the folder's name.
        quiet: No progress bar.

    Raises:
        PermissionError: `root` cannot be written.
    """
    config = config or WorldConfig()
    world = paths(root, seed, config)
    if world.complete:
        return world
    from filelock import FileLock

    world.root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(world.root.with_name(f".{world.root.name}.lock")):
        if not world.complete:
            _build(world, seed, config, quiet)
    return world


def _build(world: World, seed: int, config: WorldConfig, quiet: bool) -> None:
    prefix = f".{world.root.name}.building-"
    for leftover in world.root.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)  # we hold the lock, so whoever made it is gone
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=world.root.parent))
    folder.chmod(0o755)  # mkdtemp is private; a cache may be shared
    _write_rows(folder / world.rl.name, folder / world.probe.name, seed, config)
    _write_student(folder / world.student.name, seed, config, quiet)
    (folder / "world.json").write_text(json.dumps({"seed": seed, **asdict(config)}, indent=1) + "\n")
    folder.rename(world.root)


def _write_rows(rl: Path, probe: Path, seed: int, config: WorldConfig) -> None:
    from verl_steer.data.rows import script_to_row, write_rows
    from verl_steer.microworld.lexicon import stable
    from verl_steer.microworld.scripts import generate

    scripts = generate("rl", seed, config.rl_pairs)
    # Twins apart from each other, and the same mixture throughout: the loader need not shuffle.
    stable(seed, "order of rl rows").shuffle(scripts)
    write_rows((script_to_row(script, n, "rl") for n, script in enumerate(scripts)), rl)
    held_out = generate("probe", seed, config.probe_pairs)
    write_rows((script_to_row(script, n, "probe") for n, script in enumerate(held_out)), probe)


def _write_student(folder: Path, seed: int, config: WorldConfig, quiet: bool) -> None:
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from verl_steer.microworld import student, warmup

    columns = TextColumn("warming the embedded student"), TextColumn("{task.description:>8s}"), BarColumn()
    times = TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TimeRemainingColumn()
    sizes = config.warmup
    with Progress(*columns, *times, disable=quiet) as bar, torch.random.fork_rng(devices=[]):
        total = sizes.vision_steps + sizes.base_steps + sizes.manner_steps
        task = bar.add_task("eyes", total=total, loss=0.0)

        def report(stage: str, step: int, steps: int, loss: float) -> None:
            bar.update(task, advance=1, description=stage, loss=loss)

        model, processor = warmup.warm(seed, sizes, report)
    student.save(model, processor, folder)
