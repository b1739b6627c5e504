"""Every row of the algorithm table: composed always, trained for two real steps by `bash tests/run.sh --algorithms`."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("verl")
import algorithm_sweep
import algorithms_page
from algorithm_runs import (
    Row,
    Seen,
    base_overrides,
    judge,
    on_ranks,
    part_of,
    rows,
    run_row,
    runs,
    stages,
    with_recipe,
)
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.config import omega_conf_to_dataclass

from verl_steer.config import SteerConfig
from verl_steer.credit import TurnBaseline
from verl_steer.plugin import advantage

ROWS = rows()
FIGURES = (
    "actor/grad_norm",
    "actor/pg_clipfrac",
    "actor/pg_loss",
    "actor/ppo_kl",
    "steer/masked/fraction",
    "training/rollout_probs_diff_max",
)
needs_an_hour = pytest.mark.skipif(
    not os.environ.get("VERL_STEER_ALGORITHMS"), reason="about an hour; run by bash tests/run.sh --algorithms"
)


def composed(row: Row, folder: Path):
    """The row's whole configuration, as a run of its own sees it."""
    overrides = with_recipe((*base_overrides(folder, "http://tutor:8000/v1"), *row.overrides, *row.test))
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=overrides)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_composes_and_names_an_estimator_and_a_loss_that_exist(row, tmp_path):
    config = composed(row, tmp_path)
    SteerConfig.from_mapping(OmegaConf.to_container(config.steer, resolve=True))
    assert core_algos.get_adv_estimator_fn(config.algorithm.adv_estimator)
    assert core_algos.get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_that_does_not_just_work_says_why(row):
    assert row.status in ("works", "needs", "why not")
    assert row.note and (row.status == "works" or row.cause)
    assert bool(row.fails) == (row.status == "why not")


@pytest.mark.algorithms
@needs_an_hour
@pytest.mark.parametrize("row", runs(), ids=lambda row: row.name)
def test_a_row_trains_two_steps_or_fails_for_its_reason(row, tmp_path):
    status, found = run_row(row, tmp_path)
    if row.fails:
        assert status != 0 and re.search(row.fails, found.output), found.output[-6000:]
        report(row, found)
        return
    assert status == 0, found.output[-6000:]
    judge(row, found)
    if row.recomputed:
        assert_masked_rollouts_had_no_influence(composed(row, tmp_path).algorithm, found)
    report(row, found)


def test_every_row_is_shown_once_and_every_estimator_and_loss_of_verl_is_in_the_table():
    shown = [name for row in (*stages(), *runs()) for name in row.name.split(" + ")]
    assert sorted(shown) == sorted(row.name for row in ROWS)
    overrides = " ".join(o for row in ROWS for o in row.overrides)
    for estimator in core_algos.ADV_ESTIMATOR_REGISTRY:
        name = str(getattr(estimator, "value", estimator))
        ours = {"steer_grpo": "(the default)", "steer_turn": "credit=turn", "steer_final": "credit=final"}
        # verl's own are used as masked_*; gae is in the recipe.
        assert ours.get(name) or f"={name}" in f"{overrides} =gae" or f"=masked_{name}" in overrides, name
    for loss in core_algos.POLICY_LOSS_REGISTRY:
        # gspo is in the recipe; bypass_mode is rollout correction's, not a loss to choose; the sweep's own is no row.
        assert f"loss_mode={loss}" in overrides or loss in ("gspo", "bypass_mode", algorithm_sweep.NAME), loss


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("remax", "reward_baselines"),
        ("optimal_token_baseline", "sum_pi_squared"),
        ("tir_optimal_token_baseline", "sum_pi_squared"),
        ("gdpo", "prompts"),
    ],
)
def test_what_is_refused_fails_in_verl_for_lack_of_a_field_that_its_trainer_does_not_hand_over(name, missing):
    """verl's own function, on exactly the fields that its V1 trainer reads before it calls it."""
    source = inspect.getsource(PPOTrainer._compute_advantage)
    read = re.search(r"fields = \[(.*?)\]", source)[1]
    assert f'"{missing}"' not in read
    handed = {f: torch.ones(2, 3) for f in re.findall(r'"(\w+)"', read) if f != "uid"}
    batch = TensorDict({**handed, "token_level_rewards": torch.ones(2, 3)}, batch_size=2)
    data = DataProto(batch=batch, non_tensor_batch={"uid": np.array(["a", "a"], dtype=object)})
    config = OmegaConf.create({"gdpo_reward_keys": ["steer/return"]})
    with pytest.raises((TypeError, AssertionError, KeyError), match=missing):
        compute_advantage(data, adv_estimator=name, config=config)


@pytest.mark.parametrize("row", stages(), ids=lambda row: row.name)
def test_a_loss_that_left_ratio_1_clips_and_gives_a_masked_rollout_no_gradient(row, tmp_path):
    """verl's own loss with the row's configuration, on six rollouts of which one is masked."""
    config = omega_conf_to_dataclass(composed(row, tmp_path).actor_rollout_ref.actor)
    torch.manual_seed(0)
    mask = torch.ones(6, 40)
    mask[:, 15:20] = 0  # the tutor's tokens
    mask[5] = 0
    config.global_batch_info.update(
        dp_size=1, batch_num_tokens=mask.sum(), global_batch_size=6, loss_scale_factor=config.loss_scale_factor
    )
    old = -torch.rand(6, 40) * 4
    advantages = torch.randn(6, 1) * mask
    moved = 0.3 * torch.randn(6, 40)

    def loss(change_of_masked: float):
        now = (old + moved).detach()
        now[5] += change_of_masked
        now.requires_grad_()
        mode = config.policy_loss.loss_mode
        torch.manual_seed(1)  # Clip-Cov draws the tokens that it leaves out
        value, metrics = core_algos.get_policy_loss_fn(mode)(
            old_log_prob=old,
            log_prob=now,
            advantages=advantages,
            response_mask=mask.bool(),
            loss_agg_mode=config.loss_agg_mode,
            config=config,
        )
        value.backward()
        return value.item(), now.grad, metrics

    value, gradient, metrics = loss(0.0)
    assert math.isfinite(value) and gradient.isfinite().all()
    assert gradient[:5].abs().max() > 0 and not gradient[5].any() and not gradient[:, 15:20].any()
    assert loss(-1.0)[0] == pytest.approx(value, abs=1e-7), "what a masked rollout said changes nothing"
    assert all(metrics[name] > 0 for name in row.positive) and all(metrics[name] != 0 for name in row.nonzero)


def test_the_page_is_what_the_table_and_the_kept_figures_make_of_it():
    assert algorithms_page.PAGE.read_text(encoding="utf-8") == algorithms_page.page(algorithms_page.read_seen())


@pytest.mark.algorithms
@needs_an_hour
def test_the_sweep_trains_two_steps_with_each_estimator_and_each_loss(tmp_path, monkeypatch):
    listed = stages()
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([algorithm_sweep.stage_of(composed(row, tmp_path)) for row in listed]))
    monkeypatch.setenv(algorithm_sweep.PLAN, str(plan))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    steps = len(listed) * algorithm_sweep.STEPS_EACH
    sweep = Row("sweep", "", "works", algorithm_sweep.OVERRIDES)
    status, found = run_row(
        sweep, tmp_path, f"trainer.total_training_steps={steps}", "trainer.total_epochs=20", timeout_s=900
    )
    assert status == 0, found.output[-6000:]
    assert_the_sweep(listed, plan, tmp_path, found)
    for number, row in enumerate(listed):
        report(row, part_of(found, number))


def assert_the_sweep(listed: list[Row], plan: Path, folder: Path, found: Seen) -> None:
    """Every stage shows what its rows promise, with its own loss at every update."""
    each = algorithm_sweep.LOSSES_A_STEP * algorithm_sweep.STEPS_EACH
    losses = [stage["policy_loss"]["loss_mode"] for stage in json.loads(plan.read_text(encoding="utf-8"))]
    expected = [f"{number} {loss}" for number, loss in enumerate(losses) for _ in range(each)]
    assert plan.with_suffix(".losses").read_text(encoding="utf-8").splitlines() == expected
    assert found.steps == [float(s + 1) for s in range(len(listed) * algorithm_sweep.STEPS_EACH)]
    for number, row in enumerate(listed):
        stage = part_of(found, number)
        judge(row, stage)
        if row.recomputed:
            assert_masked_rollouts_had_no_influence(composed(row, folder).algorithm, stage)


@pytest.mark.algorithms
@needs_an_hour
@pytest.mark.parametrize("loss_agg_mode", ["token-mean", "seq-mean-token-sum"])
def test_two_ranks_play_the_dialogues_of_one_and_take_its_first_step(loss_agg_mode, tmp_path):
    """Two FSDP ranks and two rollout replicas against one of each."""
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        status, one = run_row(on_ranks(ranks, loss_agg_mode), folder)
        assert status == 0, one.output[-6000:]
        found.append(one)
    assert_the_same_first_step(*found)
    for ranks, one in zip((1, 2), found, strict=True):
        report(on_ranks(ranks, loss_agg_mode), one)


def assert_the_same_first_step(one: Seen, two: Seen) -> None:
    """The same words, the same scores, the same loss and gradient."""
    told = [
        {(r["seed_id"], r["session"]): [(t["asked"], t["reply"], t["placed"]) for t in r["turns"]] for r in run.records}
        for run in (one, two)
    ]
    assert told[0] == told[1] and len(told[0]) == 12
    for name in ("actor/pg_loss", "actor/grad_norm", "critic/advantages/max", "critic/score/mean"):
        [a], [b] = one.figures[name], two.figures[name]
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7), (name, a, b)
    assert abs(one.figures["actor/pg_loss"][0]) > 1e-3, "a loss of zero would be equal to anything"


def assert_masked_rollouts_had_no_influence(algorithm, found: Seen) -> None:
    """The advantages that verl trained on are those of the rollouts with verdicts alone.

    Replies and placed rewards are in the records; the estimator is called on them once more, without the masked
    rollouts, and must give the extremes and the mean that the trainer logged.
    """
    estimator = core_algos.get_adv_estimator_fn(algorithm.adv_estimator)
    memory, advantage._past = advantage._past, TurnBaseline()
    try:
        for number, step in enumerate(found.steps):
            records = [r for r in found.records if r["step"] == step]
            kept = [r for r in records if not r["masked"]]
            assert len(kept) > 0, "every rollout is masked"
            mask, rewards = as_tokens(kept)
            uids = np.array([r["uid"] for r in kept], dtype=object)
            advantage.group_facts.replace(
                {r["uid"]: (r["kind"], r["planned_turns"]) for r in records},
                {r["uid"]: r["greedy_return"] for r in records if "greedy_return" in r},
            )
            values, _ = estimator(token_level_rewards=rewards, response_mask=mask, index=uids, config=algorithm)
            valid = values[mask.bool()]
            for name, expected in (("max", valid.max()), ("min", valid.min()), ("mean", valid.mean())):
                logged = found.figures[f"critic/advantages/{name}"][number]
                assert logged == pytest.approx(float(expected), abs=2e-5), (step, name)
    finally:
        advantage._past = memory


def as_tokens(records: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and token rewards, (rollouts, tokens), of recorded dialogues; one question token stands between two turns."""
    length = max(sum(t["reply_tokens"] + 1 for t in r["turns"]) for r in records)
    mask, rewards = torch.zeros(len(records), length, dtype=torch.int64), torch.zeros(len(records), length)
    for row, record in enumerate(records):
        at = 0
        for turn in record["turns"]:
            mask[row, at : at + turn["reply_tokens"]] = 1
            at += turn["reply_tokens"] + 1
            rewards[row, at - 2] = turn["placed"]
    return mask, rewards


def report(row: Row, found: Seen) -> None:
    """Leaves the figures of a run where `tests/algorithms_page.py` finds them."""
    folder = os.environ.get("VERL_STEER_ALGORITHMS_OUT")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    shown = {name: found.figures[name] for name in (*FIGURES, *row.positive, *row.nonzero) if name in found.figures}
    text = json.dumps({"run": row.name, "steps": len(found.steps), "figures": shown}, indent=1)
    Path(folder, re.sub(r"\W+", "-", row.name) + ".json").write_text(text + "\n", encoding="utf-8")
