"""What a run will ask of its tutor."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig


def demand(config: DictConfig, steer: Any, rows: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """Calls, tokens and hours of the whole run at the latency measured for one short call.

    Args:
        config: The composed configuration.
        steer: Its `steer:` node.
        rows: Counts of `checks.rows_usable`.
        one: Latency (seconds) and tokens of one call, as `checks.tutor_answers` returns them.
    """
    used, validation = rows["train"], rows["validation"]
    steps = config.trainer.total_training_steps or used // config.data.train_batch_size * config.trainer.total_epochs
    turns = rows["turns"] / max(1, used + validation)
    validations = int(bool(config.trainer.val_before_train))
    if config.trainer.test_freq > 0:
        validations += max(1, steps // config.trainer.test_freq)
    dialogues = steps * config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    dialogues += validations * validation * config.actor_rollout_ref.rollout.val_kwargs.n
    calls = round(dialogues * turns)
    tokens = calls * (one["prompt_tokens"] + one["completion_tokens"])
    return {
        "run_calls": calls,
        "run_tokens": tokens,
        "run_hours": calls * one["latency_s"] / steer.tutor.max_concurrency / 3600,
    }
