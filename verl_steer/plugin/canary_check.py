"""`verl-steer doctor --canaries`: the configured tutor as a judge of labelled and of hostile replies."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.chat.outage import ModelOutage
from verl_steer.config import ConfigError, SteerConfig
from verl_steer.plugin import checks
from verl_steer.plugin.findings import Finding, compose_recipe, is_sft, run
from verl_steer.roles.build import build_tutor
from verl_steer.testing.canaries import Answered, Canary, ask_all, built_in, hostile_variants
from verl_steer.testing.canary_file import CanaryFileError, read_canary_file
from verl_steer.testing.canary_report import Report, report

OWN = "built-in"
OUTAGE_S = 60.0  # somebody waits for the answer: no half hour, as a training would


def run_canaries(
    overrides: list[str], config_dir: Path | None, canary_file: Path | None, attacks_each: int
) -> tuple[list[Finding], list[Report]]:
    """Composes the recipe, asks its tutor about the canaries, and sums up.

    Args:
        overrides: Hydra overrides as given to `main_ppo`; only `steer` is looked at.
        config_dir: As `doctor.run_doctor`.
        canary_file: The user's own labelled turns, as a second set, or None.
        attacks_each: Hostile variants of each clean case that has room for a better score.

    Returns:
        What was found, as the doctor's; and a report of each set, [] if the tutor could not be asked.
    """
    findings: list[Finding] = []
    config = compose_recipe(overrides, config_dir, findings)
    steer = None if config is None else run(findings, "steer node", lambda: _tutor_node(config))
    found = run(findings, "canaries", lambda: _sets(canary_file, attacks_each))
    if steer is None or found is None:
        return _plain(findings), []
    reports = run(findings, "tutor", lambda: _ask(steer["v"], found["sets"]))
    return _plain(findings), [] if reports is None else reports["reports"]


def _tutor_node(config: DictConfig) -> tuple[str, dict[str, Any]]:
    if is_sft(config):
        raise checks.Problem(
            "this recipe is one of stage II, which asks no tutor; name the one of main_ppo, +recipe=..."
        )
    return "valid", {"v": checks.steer_node(config)}


def _sets(path: Path | None, each: int) -> tuple[str, dict[str, Any]]:
    clean = {OWN: built_in()}
    if path is not None:
        try:
            clean[str(path)] = read_canary_file(path)
        except CanaryFileError as error:
            raise checks.Problem(f"--canary-file: {error}") from error
    sets = {name: [*cases, *hostile_variants(cases, each)] for name, cases in clean.items()}
    said = [f"{name}: {len(clean[name])} clean, {len(sets[name]) - len(clean[name])} hostile" for name in sets]
    return "; ".join(said), {"sets": sets}


def _ask(steer: SteerConfig, sets: dict[str, list[Canary]]) -> tuple[str, dict[str, Any]]:
    if steer.tutor.kind == "managed":
        raise checks.Problem(
            "steer.tutor.kind=managed: its servers run only while a training does; serve the model elsewhere and test it there "
            "with steer.tutor.kind=endpoint"
        )
    try:
        answers = asyncio.run(_answers(steer, sets))
    except (ChatConfigError, ConfigError, ModelOutage) as error:
        raise checks.Problem(f"steer.tutor: {error}") from error
    name = steer.tutor.model or steer.tutor.kind
    total = sum(map(len, answers.values()))
    return f"{name} was asked {total} times", {"reports": [report(name, found) for name, found in answers.items()]}


async def _answers(steer: SteerConfig, sets: dict[str, list[Canary]]) -> dict[str, list[Answered]]:
    patience = min(steer.tutor.outage_s, OUTAGE_S)
    tutor = build_tutor(dataclasses.replace(steer.tutor, outage_s=patience), steer.tutor.max_concurrency)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        ping = getattr(tutor, "ping", None)
        if ping is not None and (fault := await ping()) is not None:
            raise checks.Problem(f"steer.tutor: {fault}")
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("asking the tutor", total=sum(map(len, sets.values())))
            return {
                name: await ask_all(
                    tutor,
                    canaries,
                    concurrency=steer.tutor.max_concurrency,
                    deadline_s=steer.tutor.timeout_s,
                    done=lambda: progress.advance(task),
                )
                for name, canaries in sets.items()
            }
    finally:
        await tutor.aclose()


def _plain(findings: list[Finding]) -> list[Finding]:
    for finding in findings:
        finding.facts = {}
    return findings
