"""How a run stops when its tutor is gone for good, a worker cannot work, or a step has no verdicts to train on.

The first two are said by a worker and heard by the sampler, which sees the third itself.

verl catches whatever an agent loop raises and trains on the rollouts that are left; with the tutor gone that
would be a step on nothing. The one place whose exception ends a run is the sampler, in the trainer's own process;
it lists the transfer queue at every poll anyway, so a worker leaves its message there. Nothing is saved on the way
out: the step that waits has trained on nothing yet, and the newest checkpoint is whole.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import ray
import transfer_queue as tq

from verl_steer.chat.outage import ModelOutage
from verl_steer.local.checkpoint import reached

PARTITION = "steer_outage"


class TutorOutage(RuntimeError):
    """The tutor has served nobody for `steer.tutor.outage_s`, or a worker cannot ask it: the run ends and can be resumed."""


class NothingScored(RuntimeError):
    """A step without a single rollout to train on."""


async def report(worker: str, error: Exception) -> None:
    """Leaves a message for the sampler, before verl sees the failure.

    Args:
        worker: Id of the process that gives up.
        error: Why.
    """
    gone = isinstance(error, ModelOutage)
    says = (
        f"the tutor is gone: {error} (steer.tutor.outage_s)" if gone else f"an agent-loop worker cannot work: {error}"
    )
    await tq.async_kv_put(key=worker, partition_id=PARTITION, tag={"says": says, "job": _job()})


def raise_if_reported(partitions: dict[str, dict[str, dict[str, Any]]], checkpoint_dir: str | None) -> None:
    """Ends the run if a worker gave up.

    Args:
        partitions: The transfer queue's, by name: key -> tag.
        checkpoint_dir: `trainer.default_local_dir`, for the message.

    Raises:
        TutorOutage: Some worker did.
    """
    messages = partitions.pop(PARTITION, None) or {}
    # A checkpoint of verl's asynchronous modes holds the whole queue, this too: what ended an earlier run is no news.
    said = [message.get("says", "") for message in messages.values() if message.get("job") == _job()]
    if said:
        says = said[0]
        raise TutorOutage(
            f"{says}. Training stops here; no rollout was scored or trained on without its tutor. "
            f"{resumes_from(checkpoint_dir)}"
        )


def raise_if_all_masked(records: list[dict[str, Any]], checkpoint_dir: str | None) -> None:
    """Ends the run at a step that has nothing to train on; verl would end it too, over an empty response mask.

    Args:
        records: The step's.
        checkpoint_dir: As in `raise_if_reported`.

    Raises:
        NothingScored: Every rollout lacks verdicts; with what became of them.
    """
    if not records or not all(record.get("masked") for record in records):
        return
    missing = [turn for record in records for turn in record["turns"] if turn["scores"] is None]
    outcomes = Counter(str(turn["outcome"]) for turn in missing)
    said = Counter(turn["reason"] for turn in missing if turn["reason"])
    reasons = said or Counter(str(record["mask_reason"]) for record in records)
    raise NothingScored(
        f"none of the {len(records)} rollouts of this step has enough verdicts to be trained on "
        f"(missing verdicts: {', '.join(f'{n} {name}' for name, n in outcomes.most_common()) or 'none'}; commonest "
        f"reason: {reasons.most_common(1)[0][0]}). {resumes_from(checkpoint_dir)}"
    )


def _job() -> str:
    """The Ray job that this process belongs to; one for a run, another when it is resumed."""
    return str(ray.get_runtime_context().get_job_id()) if ray.is_initialized() else ""


def resumes_from(checkpoint_dir: str | None) -> str:
    """Where the same command goes on, in a sentence."""
    step = reached(Path(checkpoint_dir).expanduser()) if checkpoint_dir else 0
    if not step:
        return "There is no checkpoint yet: the same command starts from the beginning."
    return f"The same command resumes from step {step} ({checkpoint_dir})."
