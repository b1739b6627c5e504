"""What an arm met in training: how much of it was judged, how much there was to learn from, and whose questions it was asked.

Two arms that differ in one setting may differ in this, too; and an ablation that changes nothing of it can show nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from verl_steer.credit import ROUNDING, group_advantages
from verl_steer.records import Record, read_records


class Met(BaseModel):
    """Counts and shares over the training records of a run; shares are None where there is nothing to take them of.

    Attributes:
        rollouts: Dialogues that entered the loss.
        replies: Their judged replies.
        tokens: Tokens of all their replies.
        silent: Share of groups whose returns are all equal: they teach nothing.
        spread: Root mean square of R_i minus the mean of its group: how large GRPO's advantages are without a division by std.
        later: Questions after a dialogue's first.
        rewritten: Share of these that are not the planned question.
        elsewhere: Share of these that differ from what the next rollout of the same script was asked at that turn: what
            asking another dialogue's questions would change, if nothing else did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rollouts: int
    replies: int
    tokens: int
    silent: float | None
    spread: float | None
    later: int
    rewritten: float | None
    elsewhere: float | None


def met_in(records: Path) -> Met:
    """Reads the training records of a run.

    Raises:
        RecordError: A record is damaged.
    """
    groups: dict[tuple[object, object], list[Record]] = defaultdict(list)
    for record in read_records(records, "train"):
        if not record["masked"]:
            groups[record["step"], record["uid"]].append(record)
    return met_of(sorted(group, key=lambda r: r["session"]) for group in groups.values())


def met_of(groups: Iterable[list[Record]]) -> Met:
    """Counts over groups of siblings, each in the order of its sessions."""
    returns: list[float] = []
    names: list[int] = []
    replies = tokens = later = rewritten = compared = elsewhere = 0
    for name, group in enumerate(groups):
        asked = [[turn["asked"] for turn in record["turns"]] for record in group]
        for n, record in enumerate(group):
            returns.append(float(record["return"]))
            names.append(name)
            replies += sum(turn["scores"] is not None for turn in record["turns"])
            tokens += sum(turn["reply_tokens"] for turn in record["turns"])
            later += len(record["turns"]) - 1
            rewritten += sum(turn["asked"] != turn["planned"] for turn in record["turns"][1:])
            beside = asked[(n + 1) % len(asked)]
            both = list(zip(asked[n][1:], beside[1:], strict=False)) if len(asked) > 1 else []
            compared += len(both)
            elsewhere += sum(one != other for one, other in both)
    advantages = group_advantages(np.array(returns), names, np.ones(len(returns), dtype=np.bool_))
    loud = {name for name, advantage in zip(names, advantages, strict=True) if abs(advantage) > ROUNDING}
    return Met(
        rollouts=len(returns),
        replies=replies,
        tokens=tokens,
        silent=1 - len(loud) / len(set(names)) if names else None,
        spread=float(np.sqrt((advantages**2).mean())) if names else None,
        later=later,
        rewritten=rewritten / later if later else None,
        elsewhere=elsewhere / compared if compared else None,
    )
