"""verl's replay buffer, plus records and metrics.

The V1 trainer logs no field of a rollout, but it merges whatever metrics `sample()` returns. The
sampler also sees, in one process and once a step, exactly the dialogues that are trained on, which
makes it the right and only writer of the dialogue records.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.v1.replay_buffer import FILTER_GROUPS_REWARD_METRIC, ReplayBuffer, ReplayBufferAsync

from verl_steer.credit import tied
from verl_steer.plugin import outage
from verl_steer.plugin.advantage import group_facts
from verl_steer.records import RecordWriter, build_record
from verl_steer.summary import summarise

log = logging.getLogger(__name__)

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
        self._rollout_n = options.get("rollout_n")

    def _sync_metadata_from_transfer_queue(self) -> None:
        """verl's look at the queue, which every poll begins with; a lost tutor ends the run here.

        Raises:
            TutorOutage: A worker gave its tutor up.
        """
        super()._sync_metadata_from_transfer_queue()  # type: ignore[misc]
        outage.raise_if_reported(self.partitions, self._checkpoint_dir)  # type: ignore[attr-defined]

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter[float]]:
        """verl's groups without signal, and those that have none once masked rollouts are left out.

        verl compares the rollouts' rewards, and a masked one's is placed as 0: a group of equal returns and one missing
        verdict would seem to teach something (replay_buffer.py, the base's method).
        """
        known = self._dapo_classification_cache[partition_id]  # type: ignore[attr-defined]
        before = set(known)
        filtered, counts = super()._dapo_filtered_keys(partition_id)  # type: ignore[misc]
        if self.filter_groups_metric != FILTER_GROUPS_REWARD_METRIC:  # type: ignore[attr-defined]
            return filtered, counts
        fresh = {uid for uid in known if uid not in before and known[uid] is None}
        keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in fresh]  # type: ignore[attr-defined]
        known.update(without_signal(keys, _scores(keys, partition_id)))
        found = {uid: value for uid, value in known.items() if value is not None}
        return set(found), Counter(found.values())

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """verl's sample, with our records written and our metrics added."""
        batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        records = _records(batch, global_steps)
        if self._writer is not None and records:
            self._writer.write_step("val" if partition_id == "val" else "train", global_steps, records)
        if partition_id != "val":
            outage.raise_if_all_masked(records, self._checkpoint_dir)
            group_facts.replace(
                {r["uid"]: (r["kind"], r["planned_turns"]) for r in records},
                {r["uid"]: r["greedy_return"] for r in records if "greedy_return" in r},
            )
            metrics.update(summarise(records))
            if self._rollout_n and not isinstance(self, ReplayBufferAsync):  # which replaces a group that lost one
                arrived = len({tuple(key.split("_")[:2]) for key in batch.keys})
                metrics["steer/lost/fraction"] = lost_fraction(arrived, batch_size * int(self._rollout_n))
        return batch, metrics


class SteerReplayBuffer(_Recording, ReplayBuffer):
    """For `trainer.v1.trainer_mode=sync`."""


class SteerReplayBufferAsync(_Recording, ReplayBufferAsync):
    """For the asynchronous trainer modes."""


def lost_fraction(arrived: int, expected: int) -> float:
    """The share of a step's rollouts that never arrived: verl logs what their workers raised and trains on the others."""
    lost = 1 - arrived / expected
    if lost > 0:
        log.warning(
            "%d of %d rollouts of this step were lost; look for 'Error in _run_prompt' above",
            expected - arrived,
            expected,
        )
    return max(lost, 0.0)


def without_signal(keys: Sequence[str], scores: Sequence[Mapping[str, Any] | None]) -> dict[str, float]:
    """Groups whose valid rollouts all have one return, or of which fewer than two are valid.

    Args:
        keys: `{uid}_{session}_{index}` of each rollout.
        scores: Its score (`records.score_to_dict`), or None if it has none; then its group is left alone.

    Returns:
        uid -> the return that they share, 0.0 if no rollout is valid.
    """
    returns: dict[str, list[float]] = defaultdict(list)
    unknown = set()
    for key, score in zip(keys, scores, strict=True):
        uid = key.split("_")[0]
        if score is None:
            unknown.add(uid)
        returns[uid] += [score["return"]] if score and score["return"] is not None else []
    flat = {uid: values for uid, values in returns.items() if uid not in unknown and tied(values)}
    return {uid: values[0] if values else 0.0 for uid, values in flat.items()}


def _steer_fields(keys: Sequence[str], partition_id: str) -> list[dict[str, Any] | None]:
    """What our loop and reward manager left of each rollout; None for those of other loops and padding rows."""
    if not keys:
        return []
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition_id, select_fields=["extra_fields"])
    fields = data.pop("extra_fields").tolist()  # popped, it is a stack; indexed, tensordict gives a plain list
    return [(f.get("steer") or None) if isinstance(f, dict) else None for f in fields]


def _scores(keys: Sequence[str], partition_id: str) -> list[Mapping[str, Any] | None]:
    return [steer.get("score") if steer else None for steer in _steer_fields(keys, partition_id)]


def _records(batch: Any, step: int) -> list[dict[str, Any]]:
    """The dialogue records of a batch's rows; rows of other agent loops and padding rows have none."""
    found = [steer for steer in _steer_fields(batch.keys, batch.partition_id) if steer]
    return [build_record({**s["context"], **_twin(s), "step": step}, s["dialogue"], s.get("score")) for s in found]


def _twin(steer: dict[str, Any]) -> dict[str, Any]:
    """The greedy twin's dialogue for the record of the group's first rollout; all carry it, one shows it."""
    return {"greedy": steer["greedy"]} if "greedy" in steer and steer["context"]["session"] == 0 else {}
