"""verl's replay buffer, plus records and metrics.

The V1 trainer logs no field of a rollout, but it merges whatever metrics `sample()` returns. The
sampler also sees, in one process and once a step, exactly the dialogues that are trained on, which
makes it the right and only writer of the dialogue records.
"""

from __future__ import annotations

from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from verl_steer.plugin import outage
from verl_steer.plugin.advantage import group_facts
from verl_steer.records import RecordWriter, build_record
from verl_steer.summary import summarise

#: Arguments of verl's built-in samplers that verl does not pass to a custom one (trainer_base.py:162-184); a verl with
#: patches/custom-sampler-settings.patch does, and then what verl passes counts.
_PASSED_ON = (
    "poll_interval",
    "filter_groups_metric",
    "train_batch_size",
    "gen_batch_size",
    "max_inflight_gen_batches",
    "sync_refill_failed_groups",
)


class _Recording:
    """Mixin: writes records, returns metrics, tells the estimator what it cannot see."""

    def __init__(self, *args: Any, sampler_kwargs: DictConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        options = (
            OmegaConf.to_container(sampler_kwargs, resolve=True)
            if OmegaConf.is_config(sampler_kwargs)
            else dict(sampler_kwargs or {})
        )
        passed = {n: options[n] for n in _PASSED_ON if options.get(n) is not None and n not in kwargs}
        super().__init__(*args, sampler_kwargs=sampler_kwargs, **passed, **kwargs)
        directory = options.get("records_dir") or None
        self._writer = RecordWriter(directory) if directory else None
        self._checkpoint_dir = options.get("checkpoint_dir")

    def _sync_metadata_from_transfer_queue(self) -> None:
        """verl's look at the queue, which every poll begins with; a lost tutor ends the run here.

        Raises:
            TutorOutage: A worker gave its tutor up.
        """
        super()._sync_metadata_from_transfer_queue()  # type: ignore[misc]
        outage.raise_if_reported(self.partitions, self._checkpoint_dir)  # type: ignore[attr-defined]

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """verl's sample, with our records written and our metrics added."""
        batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        records = _records(batch, global_steps)
        if self._writer is not None and records:
            self._writer.write_step("val" if partition_id == "val" else "train", global_steps, records)
        if partition_id != "val":
            group_facts.replace({r["uid"]: (r["kind"], r["planned_turns"]) for r in records})
            metrics.update(summarise(records))
        return batch, metrics


class SteerReplayBuffer(_Recording, ReplayBuffer):
    """For `trainer.v1.trainer_mode=sync`."""


class SteerReplayBufferAsync(_Recording, ReplayBufferAsync):
    """For the asynchronous trainer modes."""


def _records(batch: Any, step: int) -> list[dict[str, Any]]:
    """The dialogue records of a batch's rows; rows of other agent loops and padding rows have none."""
    if not batch.keys:
        return []
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
    fields = data.pop("extra_fields").tolist()  # popped, it is a stack; indexed, tensordict gives a plain list
    found = [f["steer"] for f in fields if isinstance(f, dict) and f.get("steer")]
    return [build_record({**s["context"], "step": step}, s["dialogue"], s.get("score")) for s in found]
