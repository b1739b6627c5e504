"""What is run: arms and places. Pure: nothing here starts anything; `commandlines.py` has what is started.

An arm is what is varied. All arms of a seed share the base student, the SFT student they start from, the rows and their order,
the bench, and the tutor's random numbers; so a difference between two arms of one seed is a paired one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from verl_steer.checked import nearest
from verl_steer.stages.sizes import PlanError, Sizes

CONFIRMATORY_SEEDS = tuple(range(10, 20))
#: Those of the round that was stopped (docs/prereg.md): looked at, so they confirm nothing any more.
FIRST_ROUND_SEEDS = tuple(range(10))


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: In file names and tables.
        label: For people.
        start: "base" or "sft": the student that stage III starts from; also the arms that are only looked at.
        overrides: Of main_ppo, beside those that all arms share; None: not trained at all.
        rows: "rl", or "single": the same questions, each asked alone.
        needs: Another arm of the seed whose records this one reads, or "".
        sft_epochs: A stage II of its own over so many epochs, from the base; 0: none.
    """

    name: str
    label: str
    start: str
    overrides: tuple[str, ...] | None = ()
    rows: str = "rl"
    needs: str = ""
    sft_epochs: int = 0


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("base", "base student", "base", None),
        Arm("sft", "stage II", "sft", None),
        Arm("full", "stages II and III", "sft"),
        Arm("sft_twice", "stage II alone, two epochs", "base", None, sft_epochs=2),
        Arm("no_bootstrap", "without bootstrapping (stage III from the base)", "base"),
        Arm("running_mean", "alpha = 0 (running mean)", "sft", ("steer.reward.alpha=0",)),
        Arm("plain_mean", "without TCSR (plain mean of turn rewards)", "sft", ("steer.reward.return=plain_mean",)),
        Arm(
            "plain_mean_kl",
            "plain mean, with a KL loss scaled alike",
            "sft",
            # Its advantages are a fifth as large (docs/prereg.md), so is this coefficient of the usual 0.1.
            ("steer.reward.return=plain_mean", "actor_rollout_ref.actor.kl_loss_coef=0.02"),
        ),
        Arm("script", "without feedback (scripted questions)", "sft", ("steer.dialogue.feedback=script",)),
        Arm("yoked", "yoked questions (another dialogue's)", "sft", ("steer.dialogue.feedback=yoked",), needs="full"),
        Arm("single_turn", "single-turn data", "sft", ("steer.dialogue.max_turns=1",), rows="single"),
        Arm(
            "single_turn_base",
            "single-turn data, without bootstrapping",
            "base",
            ("steer.dialogue.max_turns=1",),
            rows="single",
        ),
        Arm("final_credit", "credit to the last turn only", "sft", ("steer.reward.credit=final",)),
        Arm("steer_turn", "credit turn by turn", "sft", ("steer.reward.credit=turn",)),
        Arm(
            "reference",
            "the reference code's reward and advantage",
            "sft",
            (
                "steer.reward.preset=reference",
                "algorithm.adv_estimator=masked_grpo",
                "algorithm.norm_adv_by_std_in_grpo=true",
            ),
        ),
    )
}
FAST_ARMS = ("base", "sft", "full")
#: Those that the plan did not have at first; docs/prereg.md says when and why they were added.
ADDED_ARMS = ("sft_twice", "plain_mean_kl", "single_turn_base")
#: Asked whether their verdicts rest on picture and history (`verl_steer.microworld.causal`).
PROBED_ARMS = ("sft", "full")
#: A script has about so many turns: single-turn steps hold so many times more rows, and judge as many replies.
TURNS_A_SCRIPT = 4
#: What the embedded default sets for its own student; here the student is another file, so they are said again
#: (a test compares the two).
EMBEDDED: tuple[str, ...] = (
    "steer.tutor.kind=microworld",
    "steer.dialogue.max_turn_tokens=24",
    "data.max_prompt_length=96",
    "data.max_response_length=512",
    "data.dataloader_num_workers=0",
    "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=20",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=20",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "reward.num_workers=1",
    "trainer.n_gpus_per_node=1",
    "trainer.v1.sampler.sampler_kwargs.poll_interval=0.1",
)


@dataclass(frozen=True)
class Place:
    """Where the parts of a seed lie.

    Attributes:
        root: The experiment's folder.
        seed: The training seed.
    """

    root: Path
    seed: int

    @property
    def folder(self) -> Path:
        """Everything of the seed."""
        return self.root / f"seed{self.seed}"

    def rows(self, name: str) -> Path:
        """A parquet file: sft, rl, single or probe."""
        return self.folder / "rows" / f"{name}.parquet"

    @property
    def bench(self) -> Path:
        """The held-out bench, the same for every seed."""
        return self.root / "bench.parquet"

    @property
    def base(self) -> Path:
        """A link to the base student in the world's own folder."""
        return self.folder / "base"

    @property
    def sft(self) -> Path:
        """Stage II's checkpoints."""
        return self.folder / "sft"

    def has(self, part: str) -> bool:
        """Whether the `world` or the `rows` of the seed are there; each appears whole or not at all."""
        if part == "world":
            return self.base.is_dir()
        return all(path.is_file() for path in (self.bench, *map(self.rows, ("sft", "rl", "single", "probe"))))

    def arm(self, name: str) -> Path:
        """Stage III's checkpoints and records."""
        return self.folder / "arms" / name

    def played(self, name: str) -> Path:
        """The bench run of an arm."""
        return self.folder / "bench" / name

    def flips(self, name: str) -> Path:
        """What interventions turn in an arm."""
        return self.folder / f"flips-{name}.json"


def chosen(names: Sequence[str] | None, fast: bool) -> list[Arm]:
    """The arms asked for, with those whose records they need, in the table's order.

    Raises:
        PlanError: There is no such arm.
    """
    wanted = set(names or (FAST_ARMS if fast else ARMS))
    for name in sorted(wanted):
        if name not in ARMS:
            raise PlanError(f"--arms {name}: there is no such arm{nearest(name, ARMS)}")
    wanted |= {ARMS[name].needs for name in wanted if ARMS[name].needs}
    return [arm for arm in ARMS.values() if arm.name in wanted]


def constants() -> tuple[str, ...]:
    """The policies that always say the same and are to stand in every table."""
    from verl_steer.bench.policies import MICROWORLD, policies_of

    return tuple(policies_of((MICROWORLD,)))


def config_hash(arm: Arm, sizes: Sizes) -> str:
    """Twelve hex digits that change with the arm, any size and any override; not with a seed or a path."""
    described = asdict(arm) | {"label": ""}
    if not arm.sft_epochs:  # a field that came later: what does not use it keeps its hash
        del described["sft_epochs"]
    plan = {"arm": described, "sizes": asdict(sizes), "embedded": EMBEDDED}
    return hashlib.sha256(json.dumps(plan, sort_keys=True, default=dict).encode()).hexdigest()[:12]
