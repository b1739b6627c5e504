"""Runs rows of tests/plugin/algorithms.yaml through verl's real entry point, and judges what was printed.

An estimator, a loss and a KL do not meet in any key, so one run can show several rows: the table says which do.

The student is tiny and random, the tutor a server in this process: it scores by the sum of the letters that it reads,
gives no verdict now and then (so that rollouts are masked), and calls every reply to some seeds the same (so that
groups without signal exist). What it says depends on the dialogue alone, so two runs that play the same dialogues
meet the same verdicts.
"""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from main_ppo import SMALL, main_ppo, series
from PIL import Image
from tiny_model import build_tiny_vlm

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.records import read_records
from verl_steer.testing.server import Completion, serve

TABLE = Path(__file__).parent / "plugin" / "algorithms.yaml"
STEPS = 2
ROLLOUTS = 3
# Rollout and trainer, fp32, both through transformers.
AGREEMENT = 1e-6


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What the field calls it.
        part: Heading of the page that it stands under.
        status: "works", "needs" (works with a piece of ours, or with the conditions of `note`) or "why not".
        overrides: What a user adds to a recipe.
        note: One sentence for the page.
        cause: Where in verl the reason lies, file:line.
        test: Further overrides of the small run.
        positive: Metrics that must exceed 0 in some step.
        nonzero: Metrics that must differ from 0 in some step.
        zero: Metrics that must be 0 in every step.
        agrees: In how many of the first steps the log-probabilities must agree with the rollout's.
        agreement: The largest difference of a token's probability that counts as agreeing.
        recomputed: False where the advantages cannot be computed again from the dialogue records alone.
        fails: What the output of a run that must fail matches.
    """

    name: str
    part: str
    status: str
    overrides: tuple[str, ...] = ()
    note: str = ""
    cause: str = ""
    test: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    nonzero: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    agrees: int = STEPS
    agreement: float = AGREEMENT
    recomputed: bool = True
    fails: str = ""


@dataclass
class Seen:
    """What a run showed: the figures of the page."""

    steps: list[float]
    figures: dict[str, list[float]]
    records: list[dict[str, Any]] = field(default_factory=list)
    output: str = ""


def rows() -> list[Row]:
    """The table."""
    found = []
    for part, listed in yaml.safe_load(TABLE.read_text(encoding="utf-8"))["parts"].items():
        for row in listed:
            texts = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            found.append(Row(part=part, **texts))
    return found


def stages() -> list[Row]:
    """The stages of the sweep: rows that differ in estimator and loss alone."""
    return _together("sweep")


def runs() -> list[Row]:
    """The runs of their own, those that no list names alone; those of the sweep are not among them."""
    listed = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    named = {name for names in (*listed["sweep"], *listed["runs"]) for name in names}
    return [*_together("runs"), *(row for row in rows() if row.name not in named)]


def _together(kind: str) -> list[Row]:
    """Rows laid over each other, as the table lists them.

    Raises:
        KeyError: A list names a row that the table does not have.
        ValueError: Two rows of a list want different values of one key.
    """
    known = {row.name: row for row in rows()}
    return [laid_over([known[name] for name in names]) for names in yaml.safe_load(TABLE.read_text("utf-8"))[kind]]


def laid_over(members: list[Row]) -> Row:
    """One row that promises what all of `members` promise."""
    merged: dict[str, str] = {}
    for override in (o for row in members for o in (*row.overrides, *row.test)):
        key = override.split("=", 1)[0]
        if merged.setdefault(key, override) != override:
            raise ValueError(f"{[row.name for row in members]}: {merged[key]} and {override}")

    def all_of(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value for row in members for value in getattr(row, name)))

    return Row(
        name=" + ".join(row.name for row in members),
        part="",
        status="works",
        overrides=tuple(merged.values()),
        positive=all_of("positive"),
        nonzero=all_of("nonzero"),
        zero=all_of("zero"),
        agrees=min(row.agrees for row in members),
        agreement=max(row.agreement for row in members),
        recomputed=all(row.recomputed for row in members),
    )


def write_inputs(folder: Path) -> None:
    """The student and 16 seeds of 2 to 4 turns, with a picture first, later, or nowhere."""
    build_tiny_vlm(folder / "student")
    scripts = []
    for n in range(16):
        first, later = [((), ()), ((_picture(56),), ()), ((_picture(84),), ()), ((), (_picture(56),))][n % 4]
        turns = (UserTurn(f"question {n}.", first), UserTurn("and then?", later), UserTurn("why?"), UserTurn("so?"))
        scripts.append(Script(f"seed-{n}", Kind.RED_TEAM if n % 2 else Kind.BENIGN, turns[: 2 + n % 3]))
    write_rows([script_to_row(s, n, "rl") for n, s in enumerate(scripts)], folder / "rl.parquet")


def _picture(side: int) -> ImageRef:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, format="PNG")
    return ImageRef(buffer.getvalue())


def moody(body: dict[str, Any]) -> Completion:
    """The tutor: a pure function of what it reads."""
    text = json.dumps(body["messages"])
    seed = re.search(r"question (\d+)\.", text)
    mood = sum(map(ord, text))
    if seed and mood % 13 == 0:
        return Completion("", finish_reason="content_filter")
    # The preflight's sample picture belongs to no seed.
    indifferent = seed is None or int(seed[1]) % 5 == 0
    safety, usefulness = (8, 6) if indifferent else [(1, 1), (8, 6), (10, 10)][mood % 3]
    reply = {"reason": "by letters", "safety": safety, "usefulness": usefulness, "faithfulness": 5}
    return Completion(json.dumps({**reply, "strategy": "deepen", "next_question": "and deeper?"}))


def base_overrides(folder: Path, tutor_url: str) -> tuple[str, ...]:
    """The small run that every row is tried on."""
    return (
        "steer.tutor.kind=endpoint",
        "steer.tutor.model=tutor",
        f"steer.tutor.base_urls=[{tutor_url}]",
        "steer.tutor.attempts=1",
        *SMALL,
        f"actor_rollout_ref.rollout.n={ROLLOUTS}",
        # 4 seeds x 3 rollouts: 12 rows, 6 a rank on two, 6 in a mini-batch of 2 seeds; verl wants each divisible.
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=3",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3",
        f"actor_rollout_ref.model.path={folder}/student",
        f"data.train_files={folder}/rl.parquet",
        f"data.val_files={folder}/rl.parquet",
        f"trainer.default_local_dir={folder}/out",
        f"trainer.total_training_steps={STEPS}",
        "trainer.v1.sampler.sampler_kwargs.poll_interval=0.1",
    )


def with_recipe(overrides: tuple[str, ...], recipe: str = "steer_grpo") -> list[str]:
    """The overrides behind the recipe that they are added to; a `+recipe=` among them names its fragments."""
    named = [o for o in overrides if o.startswith("+recipe=")]
    assert len(named) <= 1, f"one list of recipes a run: {named}"
    return [*(named or [f"+recipe={recipe}"]), *(o for o in overrides if o not in named)]


def run_row(row: Row, folder: Path, *further: str, timeout_s: float = 420) -> tuple[int, Seen]:
    """Runs the row; returns main_ppo's exit status and what was seen."""
    if not (folder / "rl.parquet").exists():
        write_inputs(folder)
    with serve(moody) as server:
        command = with_recipe((*base_overrides(folder, server.base_url), *row.overrides, *row.test, *further))
        status, output = main_ppo(folder, *command, timeout_s=timeout_s)
    return status, seen(folder, output)


def on_ranks(ranks: int, loss_agg_mode: str) -> Row:
    """One step of the default on so many trainer ranks, each with its rollout replica."""
    return Row(
        name=f"{ranks} ranks {loss_agg_mode}",
        part="",
        status="works",
        overrides=(
            f"trainer.n_gpus_per_node={ranks}",
            f"actor_rollout_ref.actor.loss_agg_mode={loss_agg_mode}",
            "trainer.total_training_steps=1",
        ),
    )


def seen(folder: Path, output: str) -> Seen:
    """Every metric of every step, and the records."""
    lines = [line for line in output.splitlines() if "training/global_step:" in line]
    names = sorted({name for line in lines for name in re.findall(r"(?:^|[ -])([a-z_]+/[\w/@.-]+):", line)})
    # A metric that a step does not have (a loss without clip fraction) is NaN there.
    figures = {name: [(series(line, name) or [math.nan])[0] for line in lines] for name in names}
    directory = folder / "out" / "records"
    records = list(read_records(directory, "train")) if directory.is_dir() else []
    return Seen(figures.get("training/global_step", []), figures, records, output)


def part_of(found: Seen, stage: int, steps: int = STEPS) -> Seen:
    """The steps of one stage of the sweep."""
    cut = slice(stage * steps, (stage + 1) * steps)
    figures = {name: values[cut] for name, values in found.figures.items()}
    return Seen(found.steps[cut], figures, [r for r in found.records if r["step"] in found.steps[cut]], found.output)


def judge(row: Row, found: Seen) -> None:
    """Asserts what the row promises of a run that ended well."""
    figures, tail = found.figures, found.output[-6000:]
    assert len(found.steps) == STEPS, tail
    for name in ("actor/grad_norm", "actor/pg_loss", "critic/advantages/max", "critic/advantages/min"):
        values = figures[name]
        assert len(values) == STEPS and all(math.isfinite(v) for v in values), (name, values)
    assert max(figures["actor/grad_norm"]) > 0
    assert any(v != 0 for v in figures["critic/advantages/max"] + figures["critic/advantages/min"])
    assert max(figures["steer/masked/fraction"]) > 0, "without a masked rollout nothing is shown of them"
    differences = figures["training/rollout_probs_diff_max"]
    assert len(differences) == STEPS and max(differences[: row.agrees]) <= row.agreement, differences
    for name in row.positive:
        assert name in figures and any(v > 0 for v in figures[name]), (name, figures.get(name))
    for name in row.nonzero:
        assert name in figures and any(abs(v) > 0 for v in figures[name]), (name, figures.get(name))
    for name in row.zero:
        assert name in figures and all(v == 0 for v in figures[name]), (name, figures.get(name))
