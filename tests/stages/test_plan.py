"""Arms, sizes and commands."""

import json
from pathlib import Path

import pytest

from verl_steer.stages import commandlines, plan
from verl_steer.stages.plan import ARMS, Place
from verl_steer.stages.sizes import FULL, PlanError, sized


def test_an_arm_brings_the_one_whose_records_it_needs():
    assert [arm.name for arm in plan.chosen(["yoked"], fast=False)] == ["full", "yoked"]
    assert [arm.name for arm in plan.chosen(None, fast=True)] == ["base", "sft", "full"]
    assert [arm.name for arm in plan.chosen(None, fast=False)] == list(ARMS)
    with pytest.raises(PlanError, match="did you mean single_turn"):
        plan.chosen(["singleturn"], fast=False)


def test_sizes_are_set_by_name_and_checked():
    sizes = sized(FULL, ["rl_steps=5", "rl_lr=3e-5", "warmup.base_steps=7"])
    assert (sizes.rl_steps, sizes.rl_lr, sizes.warmup) == (5, 3e-5, {"base_steps": 7})
    assert sized(FULL, ["rl_kl=0"]).rl_kl == 0, "no KL loss is a choice"
    assert sized(FULL, ["rl_lr=1E-4"]).rl_lr == 1e-4
    for setting, message in (
        ("rl_kl=-1.0", "positive float"),
        ("rl_step=5", "did you mean rl_steps"),
        ("rl_steps=0", "positive int"),
        ("rl_steps=1.5", "positive int"),
        ("rl_steps", "give name=number"),
        ("sft_lr=1e400", "positive float"),
        ("rl_scripts=12", "rl_batch=16 of them make a step"),
        ("warmup.base_stps=7", "there is no such size; did you mean base_steps"),
        ("warmup.base_steps=-7", "positive int"),
        ("warmup.base_steps=7.5", "positive int"),
        ("rl_batch=2", "give a multiple of 4"),
        ("rl_benign=1.0", "a share below 1"),
        ("sft_dialogues=3", "sft_batch=16 of them make a step"),
    ):
        with pytest.raises(PlanError, match=message):
            sized(FULL, [setting])


@pytest.mark.parametrize(("scripts", "batch", "steps"), [(100, 16, 25), (90, 16, 11), (288, 16, 24), (16, 16, 3)])
def test_the_epochs_hold_every_step_though_the_last_batch_is_dropped(scripts, batch, steps, tmp_path):
    sizes = sized(FULL, [f"rl_scripts={scripts}", f"rl_batch={batch}", f"rl_steps={steps}"])
    command = commandlines.rl_command(Place(tmp_path, 1), ARMS["full"], sizes, tmp_path)
    (epochs,) = (int(a.partition("=")[2]) for a in command if a.startswith("trainer.total_epochs="))
    assert (epochs - 1) * (scripts // batch) < steps <= epochs * (scripts // batch)


def test_the_config_hash_changes_with_arm_and_sizes_and_not_with_seed_or_label():
    from dataclasses import replace

    arm = ARMS["full"]
    first = plan.config_hash(arm, FULL)
    assert first == plan.config_hash(replace(arm, label="another"), FULL)
    assert first != plan.config_hash(ARMS["script"], FULL) != plan.config_hash(arm, FULL)
    assert first != plan.config_hash(arm, sized(FULL, ["warmup.base_steps=7"]))


def test_hashes_of_results_that_exist_stay():
    """The committed plan's own hash: a field that came later must not make its results another experiment's."""
    plan_text = (Path(__file__).parents[2] / "docs" / "prereg.md").read_text()
    assert f"`full` has the hash `{plan.config_hash(ARMS['full'], FULL)}`" in plan_text
    assert plan.config_hash(ARMS["sft_twice"], FULL) != plan.config_hash(ARMS["base"], FULL)


def test_a_stage_two_of_an_arm_s_own_differs_by_its_epochs_alone(tmp_path):
    place = Place(tmp_path, 3)
    usual, own = (commandlines.sft_command(place, FULL, arm) for arm in (None, ARMS["sft_twice"]))
    differing = {(a.partition("=")[0], b.partition("=")[2]) for a, b in zip(usual, own, strict=True) if a != b}
    folder = str(place.arm("sft_twice"))
    assert differing == {("trainer.total_epochs", "2"), ("trainer.default_local_dir", folder)}


def test_every_arm_differs_from_full_by_what_it_says_alone(tmp_path):
    place = Place(tmp_path, 3)

    def settings(name: str) -> dict[str, str]:
        command = commandlines.rl_command(place, ARMS[name], FULL, tmp_path / ARMS[name].start)
        return dict(part.split("=", 1) for part in command if "=" in part)

    full = settings("full")
    ours = {"trainer.default_local_dir"}

    def differs(own: dict[str, str]) -> set[str]:
        return {key for key in full.keys() | own.keys() if full.get(key) != own.get(key)} - ours

    varied = {name: differs(settings(name)) for name, arm in ARMS.items() if arm.overrides is not None}
    assert varied == {
        "full": set(),
        "no_bootstrap": {"actor_rollout_ref.model.path"},
        "running_mean": {"steer.reward.alpha"},
        "plain_mean": {"steer.reward.return"},
        "plain_mean_kl": {"steer.reward.return", "actor_rollout_ref.actor.kl_loss_coef"},
        "script": {"steer.dialogue.feedback"},
        "yoked": {"steer.dialogue.feedback", "steer.dialogue.yoked_to"},
        "single_turn": {"steer.dialogue.max_turns", "data.train_files", "data.train_batch_size"},
        "single_turn_base": {
            "actor_rollout_ref.model.path",
            "steer.dialogue.max_turns",
            "data.train_files",
            "data.train_batch_size",
        },
        "final_credit": {"steer.reward.credit"},
        "steer_turn": {"steer.reward.credit"},
        "reference": {"steer.reward.preset", "algorithm.adv_estimator", "algorithm.norm_adv_by_std_in_grpo"},
    }
    assert settings("yoked")["steer.dialogue.yoked_to"] == str(place.arm("full") / "records")


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.overrides is not None])
def test_every_arm_composes_and_keeps_the_embedded_sizes(name, tmp_path):
    """What the embedded recipe says for its own student is said again for one that lies elsewhere."""
    pytest.importorskip("verl")
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from verl_steer.config import SteerConfig

    def composed(*overrides: str):
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides=["+recipe=steer_grpo", *overrides])
        return OmegaConf.to_container(config, resolve=True)

    command = commandlines.rl_command(Place(tmp_path, 3), ARMS[name], FULL, tmp_path / "student")
    config = composed(*command[command.index("+recipe=steer_grpo") + 1 :])
    steer = SteerConfig.from_mapping(config["steer"])
    assert steer.tutor.kind == "microworld" and steer.seed == 3
    if name == "full":
        changed = dict(leaves(composed())).items() ^ dict(leaves(config)).items()
        assert {key for key, _ in changed if "path" not in key and "dir" not in key} <= {
            "steer.seed",
            "steer.difficulty.kind",
            "data.seed",
            "actor_rollout_ref.actor.use_kl_loss",
            "actor_rollout_ref.actor.kl_loss_coef",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            "data.train_files",
            "data.val_files",
            "trainer.experiment_name",
            "actor_rollout_ref.rollout.trace.experiment_name",
            "actor_rollout_ref.rollout.prometheus.served_model_name",
            "trainer.total_training_steps",
            "trainer.total_epochs",
            "trainer.save_freq",
            "trainer.test_freq",
            "trainer.max_actor_ckpt_to_keep",
            "trainer.v1.sampler.sampler_kwargs.train_batch_size",
            *(key for key, _ in changed if key.endswith(".total_training_steps")),
        }


def leaves(node, path=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(node)


def test_a_command_is_shown_without_the_interpreter_s_path(tmp_path):
    shown = commandlines.described(commandlines.own_command("world", Place(tmp_path, 1), FULL))
    assert shown.startswith("python -m verl_steer.stages.world ") and "'{" in shown
