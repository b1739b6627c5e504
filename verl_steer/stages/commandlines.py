"""The command line of every step: verl's own entry points and the bench's commands. Nothing is started here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from verl_steer.stages.plan import EMBEDDED, TURNS_A_SCRIPT, Arm, Place
from verl_steer.stages.sizes import PlanError, Sizes

SFT_MODULE, RL_MODULE = "verl.trainer.sft_trainer", "verl.trainer.main_ppo"


def own_command(part: str, place: Place, sizes: Sizes) -> list[str]:
    """Warms the base student (part "world") or makes the seed's rows ("rows")."""
    return [
        *(sys.executable, "-m", f"verl_steer.stages.{part}", str(place.root), str(place.seed)),
        json.dumps(asdict(sizes), sort_keys=True, default=dict),
    ]


def sft_command(place: Place, sizes: Sizes, arm: Arm | None = None) -> list[str]:
    """Stage II, by verl's own SFT trainer; that of an arm which has one of its own."""
    folder, epochs = (place.arm(arm.name), arm.sft_epochs) if arm else (place.sft, sizes.sft_epochs)
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=1"),
        *("-m", SFT_MODULE, "+recipe=steer_sft"),
        f"model.path={place.base.resolve()}",
        f"data.train_files={place.rows('sft')}",
        f"data.seed={place.seed}",
        f"data.train_batch_size={sizes.sft_batch}",
        "data.max_length=1024",
        "data.max_token_len_per_gpu=8192",
        f"optim.lr={sizes.sft_lr}",
        f"trainer.total_epochs={epochs}",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={folder}",
    ]


def rl_command(place: Place, arm: Arm, sizes: Sizes, student: Path) -> list[str]:
    """Stage III of an arm, by verl's own main_ppo."""
    if arm.overrides is None:
        raise PlanError(f"{arm.name} is not trained")
    batch = sizes.rl_batch * (TURNS_A_SCRIPT if arm.rows == "single" else 1)
    yoked = (f"steer.dialogue.yoked_to={place.arm(arm.needs) / 'records'}",) if arm.needs else ()
    return [
        *(sys.executable, "-m", RL_MODULE, "+recipe=steer_grpo"),
        *EMBEDDED,
        f"actor_rollout_ref.model.path={student}",
        f"actor_rollout_ref.actor.optim.lr={sizes.rl_lr}",
        *_kl(sizes),
        f"data.train_files={place.rows(arm.rows)}",
        f"data.val_files={place.rows('probe')}",
        f"data.train_batch_size={batch}",
        f"data.seed={place.seed}",
        f"trainer.total_training_steps={sizes.rl_steps}",
        f"trainer.total_epochs={_epochs(sizes)}",
        f"trainer.save_freq={sizes.test_freq}",
        f"trainer.test_freq={sizes.test_freq}",
        "trainer.max_actor_ckpt_to_keep=1",
        f"trainer.default_local_dir={place.arm(arm.name)}",
        *arm.overrides,
        *yoked,
    ]


def _kl(sizes: Sizes) -> tuple[str, ...]:
    """The KL loss to the student that stage III starts from, if there is one."""
    if not sizes.rl_kl:
        return ()
    return (
        "actor_rollout_ref.actor.use_kl_loss=true",
        f"actor_rollout_ref.actor.kl_loss_coef={sizes.rl_kl}",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=20",
    )


def bench_commands(place: Place, name: str, student: Path) -> list[list[str]]:
    """Plays the held-out bench with a student and lets the oracle judge it."""
    verl_steer = (sys.executable, "-m", "verl_steer.cli", "bench")
    out = str(place.played(name))
    size = ("--max-tokens", "24", "--batch-size", "64", "--concurrency", "64", "--device", "cpu")
    return [
        [*verl_steer, "run", str(place.bench), "--out", out, "--checkpoint", str(student), "--name", name, *size],
        judge_command(place.played(name)),
    ]


def judge_command(folder: Path) -> list[str]:
    """The oracle's verdicts on a bench run."""
    return [sys.executable, "-m", "verl_steer.cli", "bench", "judge", str(folder), "--judge", "microworld-oracle"]


def causal_command(place: Place, name: str, student: Path) -> list[str]:
    """Interventions on picture and history."""
    out = str(place.flips(name))
    module = "verl_steer.microworld.causal"
    return [sys.executable, "-m", module, str(student), "--seed", str(place.seed), "--json", out]


def constant_commands(root: Path) -> list[list[str]]:
    """The policies that always say the same, on the same bench."""
    place = Place(root, -1)
    played = ("--out", str(root / "constants"), "--policy", "all", "--max-tokens", "24")
    return [[sys.executable, "-m", "verl_steer.cli", "bench", "run", str(place.bench), *played]]


def _epochs(sizes: Sizes) -> int:
    """Epochs that hold all steps: verl ends with the shorter of the two, and drops the last, incomplete batch of each epoch."""
    return -(-sizes.rl_steps // (sizes.rl_scripts // sizes.rl_batch))


def described(arguments: Sequence[str]) -> str:
    """A command line for a reader on another machine: no interpreter's path."""
    shown = ["python" if argument == sys.executable else argument for argument in arguments]
    return " ".join(f"'{a}'" if any(c in a for c in ' {}"') else a for a in shown)
