"""Everything that can be wrong with an SFT run, said before a model is loaded.

A Hydra callback, as in `preflight.py`; `torchrun` starts every rank's main, so every rank checks, and the first one tells.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from verl_steer.checked import ConfigError
from verl_steer.config_sft import SftRunConfig
from verl_steer.data.rows import DataError
from verl_steer.plugin import checks, fingerprint, hooks, paths, requirements
from verl_steer.plugin.checks import Problem
from verl_steer.plugin.version import UnsupportedVersionError, check_versions

FSDP = "verl.workers.config.FSDPEngineConfig"


class SftPreflight(Callback):
    """Stops an SFT run that cannot work."""

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra with the composed configuration.

        Raises:
            SystemExit: With the message; nothing has been started or overwritten.
        """
        try:
            run_preflight(config)
        except (Problem, UnsupportedVersionError, fingerprint.ForeignCheckpointError) as problem:
            sys.exit(f"\nverl_steer: {problem}\n")


def run_preflight(config: DictConfig) -> None:
    """All checks in the order in which their messages help most."""
    plugin_loaded()
    switch_reaches(config)
    requirements.attention(config, "model", "engine")
    paths.mean_the_same_under_torchrun(config)
    checks.output_writable(config)
    tokenizer, processor = checks.model_readable(config, "model")
    counts = data_usable(config, tokenizer, processor)
    files = checks.data_files(config, optional=("data.val_files",))
    mine = fingerprint.fingerprint(config, [p for key, p in files if key == "data.train_files"], fingerprint.SFT_KEYS)
    start = fingerprint.check_resume(config, mine)
    if int(os.environ.get("RANK", "0")) == 0:
        fingerprint.remember(config, mine)
        print(
            f"verl_steer: preflight passed; {counts['rows']} rows, {counts['rejected']} rejected; {start}", flush=True
        )


def plugin_loaded() -> str:
    """verl and its companions are of supported versions, and the plugin's hooks ran."""
    check_versions()
    if hooks.failures:
        raise Problem(
            "verl_steer's plugin failed to load; verl hides such errors, here it is:\n" + "\n".join(hooks.failures)
        )
    return "loaded"


def switch_reaches(config: DictConfig) -> str:
    """The node `steer` is valid, and what it says of the vision tower reaches an engine that heeds it."""
    steer = _steer_node(config)
    _engine_heeds_the_switch(config, steer)
    return f"valid; vision tower and projector {'frozen' if steer.sft.freeze_vision else 'trained'}"


def data_usable(config: DictConfig, tokenizer: Any, processor: Any) -> dict[str, int]:
    """The files are there and fill a batch with rows that can be trained on; {"rows", "rejected"}."""
    files = checks.data_files(config, optional=("data.val_files",))
    if not config.data.val_files and str(config.trainer.test_freq) != "-1":
        raise Problem(
            f"trainer.test_freq={config.trainer.test_freq} without data.val_files: verl would fail at it; set -1"
        )
    return _rows_usable(config, files, tokenizer, processor)


def _steer_node(config: DictConfig) -> SftRunConfig:
    node: Any = OmegaConf.to_container(OmegaConf.select(config, "steer", default=OmegaConf.create({})), resolve=True)
    try:
        return SftRunConfig.from_mapping(node)
    except ConfigError as error:
        raise Problem(str(error)) from error


def _engine_heeds_the_switch(config: DictConfig, steer: SftRunConfig) -> None:
    """A frozen part needs an engine that knows of it, and the key by which it is told."""
    from verl_steer.plugin.freeze import KEY

    told = OmegaConf.select(config, f"model.override_config.{KEY}")
    if steer.sft.freeze_vision != bool(told):
        raise Problem(
            f"steer.sft.freeze_vision={steer.sft.freeze_vision} does not reach the engine: model.override_config.{KEY} is "
            f"{told!r}; keep what the recipe steer_sft sets there (${{steer.sft.freeze_vision}})"
        )
    if not steer.sft.freeze_vision:
        return
    target = OmegaConf.select(config, "engine._target_")
    if target != FSDP:
        raise Problem(f"steer.sft.freeze_vision=true needs engine=fsdp, this run has {target}; set it false there")
    if OmegaConf.select(config, "engine.strategy") == "fsdp" and not OmegaConf.select(config, "engine.use_orig_params"):
        raise Problem(
            "steer.sft.freeze_vision=true with engine.strategy=fsdp: FSDP1 cannot hold trained and frozen parameters in one "
            "flat tensor; leave engine.strategy=fsdp2"
        )


def _rows_usable(config: DictConfig, files: list[tuple[str, Path]], tokenizer: Any, processor: Any) -> dict[str, int]:
    """Every row of every file can be trained on, unless rows may be rejected; a batch can be filled."""
    import pyarrow.parquet as pq

    from verl_steer.plugin.sft_dataset import refusal, unusable

    reject = OmegaConf.select(config, "data.on_bad_row", default="error") == "reject"
    counts = {"rows": 0, "rejected": 0}
    for key in ("data.train_files", "data.val_files"):
        paths = [path for name, path in files if name == key]
        if not paths:
            continue
        try:
            faults = unusable(paths, tokenizer, processor, int(config.data.max_length))
        except DataError as error:
            raise Problem(f"{key}: {error}") from error
        rows = sum(pq.read_metadata(path).num_rows for path in paths)
        if faults and not reject:
            raise Problem(f"{key}: {refusal(', '.join(p.name for p in paths), rows, faults)}")
        batch = int(config.data.train_batch_size)
        if rows - len(faults) < batch:
            # verl drops the last, incomplete batch: it would train (or validate) on nothing without a word.
            raise Problem(
                f"{key}: {rows - len(faults)} usable rows do not fill data.train_batch_size={batch}; lower it"
            )
        counts["rows"] += rows
        counts["rejected"] += len(faults)
    return counts
