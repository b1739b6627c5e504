"""How a run stops when its tutor is gone for good, or a worker cannot work: said by a worker, heard by the sampler.

verl catches whatever an agent loop raises and trains on the rollouts that are left; with the tutor gone that
would be a step on nothing. The one place whose exception ends a run is the sampler, in the trainer's own process;
it lists the transfer queue at every poll anyway, so a worker leaves its message there. Nothing is saved on the way
out: the step that waits has trained on nothing yet, and the newest checkpoint is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transfer_queue as tq

from verl_steer.chat.outage import ModelOutage
from verl_steer.plugin.fingerprint import TRACKER

PARTITION = "steer_outage"


class TutorOutage(RuntimeError):
    """The tutor has served nobody for `steer.tutor.outage_s`, or a worker cannot ask it: the run ends and can be resumed."""


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
    await tq.async_kv_put(key=worker, partition_id=PARTITION, tag={"says": says})


def raise_if_reported(partitions: dict[str, dict[str, dict[str, Any]]], checkpoint_dir: str | None) -> None:
    """Ends the run if a worker gave up.

    Args:
        partitions: The transfer queue's, by name: key -> tag.
        checkpoint_dir: `trainer.default_local_dir`, for the message.

    Raises:
        TutorOutage: Some worker did.
    """
    messages = partitions.pop(PARTITION, None)
    if messages:
        says = next(iter(messages.values())).get("says", "")
        raise TutorOutage(
            f"{says}. Training stops here; no rollout was scored or trained on without its tutor. "
            f"{resumes_from(checkpoint_dir)}"
        )


def resumes_from(checkpoint_dir: str | None) -> str:
    """Where the same command goes on, in a sentence."""
    tracker = Path(checkpoint_dir).expanduser() / TRACKER if checkpoint_dir else None
    step = tracker.read_text().strip() if tracker is not None and tracker.is_file() else ""
    if not step:
        return "There is no checkpoint yet: the same command starts from the beginning."
    return f"The same command resumes from step {step} ({checkpoint_dir})."
