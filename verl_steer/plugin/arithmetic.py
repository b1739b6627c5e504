"""Batch arithmetic: do the sizes of a run divide as verl needs them to?

verl asks these questions one at a time, most of them in its workers, after Ray has started and the model
has been loaded, and answers with two bare numbers. Here they are asked together, before anything starts,
and the answer names the keys, the sum, and the nearest sizes that work. Each check carries the place in
verl 0.9.1 whose assertion it foresees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin.checks import Problem


@dataclass(frozen=True)
class Sizes:
    """The numbers of a run that must fit each other.

    Attributes:
        batch: `data.train_batch_size`, seeds a step.
        rollouts: Rollouts a seed (`actor_rollout_ref.rollout.n`).
        updates: Batches that verl cuts a step into (`trainer.v1.MODE.parameter_sync_step`).
        nodes: `trainer.nnodes`.
        gpus: `trainer.n_gpus_per_node`.
        ulysses: Ranks that share one sequence.
        mini: `ppo_mini_batch_size`, seeds an update.
    """

    batch: int
    rollouts: int
    updates: int
    nodes: int
    gpus: int
    ulysses: int
    mini: int

    @property
    def ranks(self) -> int:
        """Processes of the trainer, one a GPU."""
        return self.nodes * self.gpus

    @property
    def data_ranks(self) -> int:
        """Ranks that see different rows: a sequence-parallel group counts as one."""
        return self.ranks // self.ulysses

    @property
    def trained_rows(self) -> int:
        """Rows of one batch of the trainer, verl's padding included (trainer_base.py:1591, `upsample_batch_…`)."""
        multiple = math.lcm(self.data_ranks, self.mini * self.rollouts)
        return math.ceil(self.batch // self.updates * self.rollouts / multiple) * multiple

    @property
    def padding_rows(self) -> int:
        """Rows of nothing that verl appends to a full batch."""
        return self.trained_rows - self.batch // self.updates * self.rollouts

    @classmethod
    def of(cls, config: DictConfig) -> Sizes:
        """Reads them; `Problem` if one is no positive whole number."""
        actor = "actor_rollout_ref.actor"
        mode = OmegaConf.select(config, "trainer.v1.trainer_mode", default="sync")
        return cls(
            _positive(config, "data.train_batch_size"),
            _positive(config, "actor_rollout_ref.rollout.n"),
            _positive(config, f"trainer.v1.{mode}.parameter_sync_step", 1),
            _positive(config, "trainer.nnodes"),
            _positive(config, "trainer.n_gpus_per_node"),
            _ulysses(config),
            _positive(config, f"{actor}.ppo_mini_batch_size"),
        )


def batches_divide(config: DictConfig) -> str:
    """Every division that verl will make of a batch comes out even.

    Returns:
        The arithmetic in one line.

    Raises:
        Problem: With the sum that does not come out, and the nearest sizes that do.
    """
    sizes = Sizes.of(config)
    _ranks_fit(config, sizes)
    _step_divides(config, sizes)
    for node in ("actor_rollout_ref.actor", "critic"):
        if node == "critic" and not uses_critic(config):
            continue
        per_rank = _updates_divide(config, sizes, node)
        if not _truth(config, f"{node}.use_dynamic_bsz"):
            _micro(config, f"{node}.ppo_micro_batch_size_per_gpu", per_rank, "an update")
    rows = sizes.trained_rows // sizes.data_ranks
    for node in ("rollout", "ref"):
        if node == "ref" and not _uses_reference(config):
            continue
        if not _truth(config, f"actor_rollout_ref.{node}.log_prob_use_dynamic_bsz"):
            _micro(config, f"actor_rollout_ref.{node}.log_prob_micro_batch_size_per_gpu", rows, "a step")
    _tokens_fit(config, sizes)
    found = (
        f"{sizes.batch} seeds x {sizes.rollouts} rollouts = {sizes.batch * sizes.rollouts} rows a step, {rows} a rank "
        f"over {sizes.data_ranks}, {sizes.trained_rows // (sizes.mini * sizes.rollouts) * sizes.updates} update(s)"
    )
    if sizes.padding_rows:
        found += (
            f"; verl adds {sizes.padding_rows} rows of nothing to fill whole updates, which weakens the last one: "
            f"make data.train_batch_size a multiple of ppo_mini_batch_size={sizes.mini}"
        )
    return found


def enough_rows(config: DictConfig, usable: int) -> None:
    """The training files fill at least one batch: verl drops an incomplete one (trainer_base.py:747).

    Args:
        usable: Rows that preflight found usable.
    """
    batch = _positive(config, "data.train_batch_size")
    if usable < batch:
        raise Problem(
            f"data.train_files hold {usable} usable rows, fewer than data.train_batch_size={batch}: verl drops an "
            f"incomplete batch, so there would be no step at all; use at most {usable}, or more rows"
        )


def heads_divide(config: DictConfig, attention_heads: int, key_value_heads: int) -> None:
    """The student's attention heads can be shared out as the run wants them.

    Args:
        attention_heads: Of the student's text model.
        key_value_heads: Likewise.

    Raises:
        Problem: ulysses (verl/models/transformers/monkey_patch.py:343) or tensor parallelism does not fit.
    """
    ulysses = _ulysses(config)
    tensor = _positive(config, "actor_rollout_ref.rollout.tensor_model_parallel_size", 1)
    for key, size in (
        ("actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size", ulysses),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", tensor),
    ):
        if attention_heads % size or (key_value_heads % size and size % key_value_heads):
            fits = [d for d in _divisors(attention_heads) if key_value_heads % d == 0 or (d % key_value_heads == 0)]
            raise Problem(
                f"{key}={size} does not divide the student's {attention_heads} attention heads and {key_value_heads} "
                f"key-value heads; use one of {', '.join(map(str, fits))}"
            )


def _ranks_fit(config: DictConfig, sizes: Sizes) -> None:
    """Sequence-parallel groups and rollout servers fill the ranks."""
    if sizes.ulysses > 1 and not _truth(config, "actor_rollout_ref.model.use_remove_padding"):
        # verl/workers/engine/fsdp/transformer_impl.py:148
        raise Problem(
            f"ulysses_sequence_parallel_size={sizes.ulysses} needs actor_rollout_ref.model.use_remove_padding=true"
        )
    if sizes.ranks % sizes.ulysses:
        raise Problem(
            f"ulysses_sequence_parallel_size={sizes.ulysses} does not divide {_ranks(sizes)}; "
            f"use one of {', '.join(map(str, _divisors(sizes.ranks)))}"
        )
    rollout = "actor_rollout_ref.rollout"
    tensor = _positive(config, f"{rollout}.tensor_model_parallel_size", 1)
    data = _positive(config, f"{rollout}.data_parallel_size", 1)
    pipeline = _positive(config, f"{rollout}.pipeline_model_parallel_size", 1)
    server = tensor * data * pipeline
    whole = f"a rollout server of tensor {tensor} x data {data} x pipeline {pipeline} = {server} GPUs"
    if sizes.ranks % server:
        # verl/workers/engine_workers.py:659
        raise Problem(
            f"{whole} does not divide {_ranks(sizes)}; lower {rollout}.tensor_model_parallel_size "
            f"to one of {', '.join(map(str, _divisors(sizes.ranks)))}"
        )
    if server % min(sizes.gpus, server):
        # verl/workers/rollout/replica.py:114
        raise Problem(f"{whole} spans nodes of {sizes.gpus} GPUs unevenly; use a multiple or a divisor of {sizes.gpus}")


def _step_divides(config: DictConfig, sizes: Sizes) -> None:
    """A step's rollouts can be shared by the ranks."""
    if sizes.batch % sizes.updates:
        # verl/trainer/ppo/v1/trainer_base.py:535
        raise Problem(
            f"data.train_batch_size={sizes.batch} cannot be cut into parameter_sync_step={sizes.updates} parts; "
            f"use {_near(sizes.batch, sizes.updates)}"
        )
    rows = sizes.batch * sizes.rollouts
    if not _truth(config, "actor_rollout_ref.actor.use_dynamic_bsz") and rows % sizes.ranks:
        # verl/utils/config.py:124
        unit = sizes.ranks // math.gcd(sizes.ranks, sizes.rollouts)
        raise Problem(
            f"data.train_batch_size {sizes.batch} x rollout.n {sizes.rollouts} = {rows} rollouts cannot be shared by "
            f"{_ranks(sizes)}; use {_near(sizes.batch, unit)}"
        )


def _updates_divide(config: DictConfig, sizes: Sizes, node: str) -> int:
    """Rows of one update on one rank; the ranks share an update without a rest."""
    mini = _positive(config, f"{node}.ppo_mini_batch_size")
    if mini > sizes.batch and not _truth(config, f"{node}.use_dynamic_bsz"):
        # verl/workers/config/actor.py:225, critic.py:127
        raise Problem(
            f"{node}.ppo_mini_batch_size={mini} is more than data.train_batch_size={sizes.batch}; "
            f"use {sizes.batch} (one update a step) or a divisor of it"
        )
    rows = mini * sizes.rollouts
    if rows % sizes.data_ranks:
        # verl/workers/engine_workers.py:267
        unit = sizes.data_ranks // math.gcd(sizes.data_ranks, sizes.rollouts)
        raise Problem(
            f"{node}.ppo_mini_batch_size {mini} x rollout.n {sizes.rollouts} = {rows} rows an update "
            f"cannot be shared by {sizes.data_ranks} data-parallel ranks; use {_near(mini, unit)}"
        )
    return rows // sizes.data_ranks


def _micro(config: DictConfig, key: str, rows: int, what: str) -> None:
    """verl/workers/engine/utils.py:125: a rank's rows are cut into equal micro-batches."""
    if OmegaConf.select(config, key) is None:
        raise Problem(f"{key} is not set; use a divisor of the {rows} rows that {what} brings to a rank")
    micro = _positive(config, key)
    if rows % micro:
        fits = _divisors(rows)
        below = max(d for d in fits if d < micro)
        above = [d for d in fits if d > micro][:1]
        raise Problem(
            f"{key}={micro} does not divide the {rows} rows that {what} brings to a rank; "
            f"use {' or '.join(map(str, [below, *above]))}"
        )


def _tokens_fit(config: DictConfig, sizes: Sizes) -> None:
    """verl/utils/seqlen_balancing.py:384: with dynamic batches, one micro-batch holds the longest dialogue."""
    needed = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    for switch, key in (
        ("actor.use_dynamic_bsz", "actor.ppo_max_token_len_per_gpu"),
        ("rollout.log_prob_use_dynamic_bsz", "rollout.log_prob_max_token_len_per_gpu"),
    ):
        if not _truth(config, f"actor_rollout_ref.{switch}"):
            continue
        held = _positive(config, f"actor_rollout_ref.{key}")
        if held * sizes.ulysses < needed:
            raise Problem(
                f"actor_rollout_ref.{key}={held} x ulysses {sizes.ulysses} = {held * sizes.ulysses} tokens cannot hold a dialogue "
                f"of data.max_prompt_length + data.max_response_length = {needed}; use {math.ceil(needed / sizes.ulysses)} or more"
            )


def _uses_reference(config: DictConfig) -> bool:
    """As verl.trainer.ppo.utils.need_reference_policy, which would import the trainer."""
    return _truth(config, "algorithm.use_kl_in_reward") or _truth(config, "actor_rollout_ref.actor.use_kl_loss")


def uses_critic(config: DictConfig) -> bool:
    """As verl.trainer.ppo.utils.need_critic."""
    enabled = OmegaConf.select(config, "critic.enable")
    return str(OmegaConf.select(config, "algorithm.adv_estimator")) == "gae" if enabled is None else bool(enabled)


def _ulysses(config: DictConfig) -> int:
    """verl takes the larger of the two keys (workers/config/actor.py:328)."""
    actor = "actor_rollout_ref.actor"
    return max(
        _positive(config, f"{actor}.fsdp_config.ulysses_sequence_parallel_size", 1),
        _positive(config, f"{actor}.ulysses_sequence_parallel_size", 1),
    )


def _truth(config: DictConfig, key: str) -> bool:
    return bool(OmegaConf.select(config, key, default=False))


def _positive(config: DictConfig, key: str, default: int | None = None) -> int:
    value: Any = OmegaConf.select(config, key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Problem(f"{key}={value}: give a whole number of at least 1")
    return value


def _near(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`, in words."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit} or {2 * unit}"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _ranks(sizes: Sizes) -> str:
    return f"{sizes.ranks} ranks" if sizes.nodes == 1 else f"{sizes.nodes} nodes x {sizes.gpus} = {sizes.ranks} ranks"
