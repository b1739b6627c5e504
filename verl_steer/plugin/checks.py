"""Everything that can be wrong before a run, one function each. `preflight.py` runs them and stops at the first failure, `doctor.py` runs them all and prints a
table. A check returns what it found; it raises `Problem` with what is wrong, where, and what to do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.checked import nearest
from verl_steer.config import ConfigError, SteerConfig, TutorConfig
from verl_steer.data.check import check_row
from verl_steer.data.rows import row_to_script
from verl_steer.dialogue import ImageRef
from verl_steer.plugin import hooks
from verl_steer.plugin.limits import row_limits
from verl_steer.plugin.settings import check_secrets, steer_config
from verl_steer.plugin.version import check_versions
from verl_steer.records import RecordError
from verl_steer.roles.build import fallback_of
from verl_steer.roles.custom import load_tutor_class
from verl_steer.yoke import Yoke


class Problem(RuntimeError):
    """Something that would break the run: what, where, and what to do."""


def plugin_loaded(config: DictConfig) -> str:
    """The plugin's hooks ran, and every name the configuration uses is registered."""
    check_versions()
    if hooks.failures:
        raise Problem(
            "verl_steer's plugin failed to load; verl hides such errors, here it is:\n" + "\n".join(hooks.failures)
        )
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    if hooks.failures:
        raise Problem("verl_steer's plugin failed to load:\n" + "\n".join(hooks.failures))
    wanted = [
        ("actor_rollout_ref.rollout.agent.default_agent_loop", _agent_loop_registry),
        ("algorithm.adv_estimator", ADV_ESTIMATOR_REGISTRY),
    ]
    if OmegaConf.select(config, "reward.reward_manager.source") == "register":
        wanted.append(("reward.reward_manager.name", REWARD_MANAGER))
    for key, registry in wanted:
        name = str(OmegaConf.select(config, key))
        if name not in registry and name not in ("gae", "grpo"):
            raise Problem(
                f"{key}={name} is not registered{nearest(name, registry)}; is verl_steer installed in this environment?"
            )
    return "agent loop, reward manager and estimator are registered"


def steer_node(config: DictConfig) -> SteerConfig:
    """The `steer:` node, validated."""
    try:
        steer = steer_config(config)
        check_secrets(steer)
    except ConfigError as error:
        raise Problem(str(error)) from error
    return steer


def lengths_agree(config: DictConfig) -> str:
    """The rollout's context window holds a prompt and all that may follow it."""
    window = OmegaConf.select(config, "actor_rollout_ref.rollout.max_model_len")
    needed = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    if window is not None and int(window) < needed:
        raise Problem(
            f"actor_rollout_ref.rollout.max_model_len={window} is less than data.max_prompt_length + data.max_response_length "
            f"= {needed}: dialogues would be cut by the server; raise it"
        )
    return f"{needed} tokens a dialogue"


def output_writable(config: DictConfig) -> str:
    """Checkpoints and records can be written."""
    for key in ("trainer.default_local_dir", "steer.records.dir"):
        value = OmegaConf.select(config, key)
        if not value:
            continue
        folder = Path(value).expanduser()
        existing = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise Problem(f"{key}={folder}: no permission to write in {existing}; choose another folder")
    return str(OmegaConf.select(config, "trainer.default_local_dir"))


def model_readable(config: DictConfig, node: str = "actor_rollout_ref.model") -> tuple[Any, Any]:
    """(tokenizer, processor or None) of the student that `node` describes."""
    path = OmegaConf.select(config, f"{node}.path")
    if not path:
        raise Problem(f"{node}.path is not set: give the student, a folder or a hub id")
    trust = bool(OmegaConf.select(config, f"{node}.trust_remote_code", default=False))
    return readable_model(f"{node}.path", path, trust)


def readable_model(key: str, path: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """(tokenizer, processor or None) of a model, a folder or a hub id.

    Raises:
        Problem: There is none, or it cannot be loaded; names `key`.
    """
    expanded = Path(path).expanduser()
    looks_local = path.startswith(("/", ".", "~")) or expanded.exists()
    if looks_local and not (expanded / "config.json").is_file():
        raise Problem(
            f"{key}={path}: {'holds no config.json' if expanded.exists() else 'does not exist'}"
            f"{_nearest_path(expanded)}; give a folder saved by save_pretrained, or a hub id"
        )
    from verl.utils.tokenizer import hf_processor, hf_tokenizer

    source = str(expanded) if looks_local else path
    try:
        return (
            hf_tokenizer(source, trust_remote_code=trust_remote_code),
            hf_processor(source, trust_remote_code=trust_remote_code),
        )
    except (OSError, ValueError) as error:
        raise Problem(f"{key}={path}: tokenizer or processor cannot be loaded: {error}") from error


def data_files(config: DictConfig, optional: tuple[str, ...] = ()) -> list[tuple[str, Path]]:
    """(key, path) of every data file; all exist. Keys in `optional` may be null."""
    found = []
    for key in ("data.train_files", "data.val_files"):
        value = OmegaConf.select(config, key)
        if not value:
            if key in optional:
                continue
            raise Problem(f"{key} is not set: give a parquet file of STEER rows (verl_steer.data.rows writes them)")
        names = list(value) if isinstance(value, (list, ListConfig)) else [value]
        for name in names:
            path = Path(str(name)).expanduser()
            if not path.is_file():
                raise Problem(f"{key}: {path} does not exist{_nearest_path(path)}")
            found.append((key, path))
    return found


def rows_usable(config: DictConfig, steer: SteerConfig, tokenizer: Any, processor: Any) -> dict[str, int]:
    """Every row can become a dialogue; stops at the first that cannot, unless rows may be rejected.

    Returns:
        Counts: rows read, turns, pictures, rejected, and usable rows of either split: train, validation.
    """
    pictures = OmegaConf.select(config, "data.max_pictures")
    limits = row_limits(tokenizer, processor, config.data, steer.dialogue.max_turns, pictures)
    reject = OmegaConf.select(config, "data.on_bad_row", default="error") == "reject"
    counts = {"rows": 0, "turns": 0, "pictures": 0, "rejected": 0, "train": 0, "validation": 0}
    for key, path in data_files(config):
        for number, row in enumerate(_read(key, path)):
            counts["rows"] += 1
            reason = check_row(row, limits)
            if reason is None:
                script = row_to_script(row)
                counts["train" if key == "data.train_files" else "validation"] += 1
                counts["turns"] += min(len(script.turns), steer.dialogue.max_turns)
                counts["pictures"] += sum(len(t.images) for t in script.turns)
            elif reject:
                counts["rejected"] += 1
            else:
                mend = "Mend the row, or set data.on_bad_row=reject to leave such rows out (each is listed with its reason in the records folder)"
                raise Problem(f"{key}: {path}, row {number}: {reason}. {mend}")
    if counts["rows"] == counts["rejected"]:
        raise Problem(f"data.train_files, data.val_files: none of the {counts['rows']} rows can be used")
    return counts


def yoked_records(config: DictConfig, steer: SteerConfig) -> str:
    """The records that a yoked run takes its questions from are there, and of these seeds."""
    folder = steer.dialogue.yoked_to
    if not folder:
        return "not yoked"
    try:
        yoke = Yoke.read(folder)
    except (FileNotFoundError, RecordError) as error:
        raise Problem(f"steer.dialogue.yoked_to={folder}: {error}{_nearest_path(Path(folder).expanduser())}") from error
    files = [path for key, path in data_files(config) if key == "data.train_files"]
    scripts = {
        script.seed_id: tuple(turn.text for turn in script.turns)
        for path in files
        for script in (row_to_script(row) for row in _read("data.train_files", path))
    }
    known, others = yoke.coverage(scripts)
    if others or not known:
        what = f"seed {others[0]!r} has another script there" if others else "none of its seeds is in data.train_files"
        raise Problem(
            f"steer.dialogue.yoked_to={folder} is of another world: {what}. Name the records of a run on the same rows"
        )
    return f"{known} of {len(scripts)} seeds have questions on record"


def tutor_answers(steer: SteerConfig, image: ImageRef) -> dict[str, Any]:
    """The tutor gives a schema-true assessment of a dialogue with a picture, and so does a fallback judge.

    A managed tutor is not up yet: it is asked as soon as it is (`managed.py`). One of the user's own is only built.

    Returns:
        latency_s, calls, prompt_tokens and completion_tokens of one assessment by the tutor; zeros if none was asked for.
    """
    tutor = steer.tutor
    if tutor.kind == "custom":
        try:
            load_tutor_class(tutor.custom)
        except ConfigError as error:
            raise Problem(str(error)) from error
    if tutor.fallback:
        asyncio.run(assessment_of(fallback_of(tutor), "steer.tutor.fallback", image))
    if tutor.kind != "endpoint":
        return {"latency_s": 0.0, "calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
    return asyncio.run(assessment_of(tutor, "steer.tutor", image))


async def assessment_of(config: TutorConfig, node: str, image: ImageRef) -> dict[str, Any]:
    """What one assessment by an endpoint costs.

    Args:
        config: Of the tutor, kind `endpoint`.
        node: Its name in the configuration, for messages.
        image: The picture to ask about.

    Raises:
        Problem: No server offers the model, or it gave no usable assessment.
    """
    from verl_steer.roles.endpoint_tutor import EndpointTutor

    try:
        tutor = EndpointTutor(dataclasses.replace(config, audit_dir=None), max_concurrency=1)
    except ChatConfigError as error:
        raise Problem(f"{node}: {error}") from error
    try:
        fault = await tutor.ping()
        if fault is not None:
            raise Problem(f"{node}: {fault}")
        found = await tutor.probe(image)
    finally:
        await tutor.aclose()
    if not found.verdict.scored:
        raise Problem(
            f"{node}.model={config.model} gave no usable assessment of a sample picture "
            f"({found.verdict.outcome.value}): {found.verdict.reason}. Is it a vision model, served with structured output?"
        )
    return {
        "latency_s": found.latency_s,
        "calls": found.calls,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
    }


def _read(key: str, path: Path) -> Iterable[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise Problem(f"{key}: {path} cannot be read as parquet: {error}") from error


def _nearest_path(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder})"
    close = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    return f"; did you mean {folder / close[0]}?" if close else ""
