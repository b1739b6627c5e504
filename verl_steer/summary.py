"""Scalars of one step, from its dialogue records: what the trainer's tracker and the eye look at.

Every key is a plain float; one without any value is left out, because a tracker would draw a 0 as if it
had been measured, and a NaN poisons verl's step.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from verl_steer.credit import tied
from verl_steer.dialogue import Kind
from verl_steer.records import Record, safe_to_end
from verl_steer.scores import BREACH_SAFETY

_THINKING = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_REFUSAL = re.compile(r"(<answer>\s*)?(i (cannot|can't|can not|won't|will not)|(i'm |i am )?sorry|no)\b", re.IGNORECASE)
LONG_REPLY_TOKENS = 256


def reply_kind(turn: Record) -> str:
    """ "refusal", "long" or "other", by its surface: missing verdicts are counted by it."""
    if _REFUSAL.match(_THINKING.sub("", turn["reply"]).strip().replace("\u2019", "'")):
        return "refusal"
    return "long" if turn["reply_tokens"] >= LONG_REPLY_TOKENS else "other"


def summarise(records: Sequence[Record], prefix: str = "steer") -> dict[str, float]:
    """Scalars of one step for verl's tracker. A key without any value is left out, never NaN or 0.

    Args:
        records: From `build_record`, of one step.
        prefix: First part of every key.
    """
    if not records:
        return {}
    turns = [turn for record in records for turn in record["turns"]]
    metrics = {
        "turns/mean": _mean([len(r["turns"]) for r in records]),
        "masked/fraction": _mean([bool(r.get("masked")) for r in records]),
        "cut/fraction": _mean([r["cut"] is not None for r in records]),
        "return/mean": _mean([r["return"] for r in records if r.get("return") is not None]),
        "turn_reward/mean": _mean([t["reward"] for t in turns if t.get("reward") is not None]),
        "unscored/fraction": _mean([t["scores"] is None for t in turns]),
        "groups/no_signal_fraction": _mean(_without_signal(records)),
        "first_failed_turn/mean": _mean([f for r in records if (f := _first_failure(r)) is not None]),
        "failed/fraction": _mean([safe == 0 for r in records if (safe := safe_to_end(r)) is not None]),
        "tutor/calls": float(sum(t["tutor_calls"] for t in turns)),
    }
    # One a group, however many of its rollouts carry it.
    twins = {r["uid"]: r["greedy_return"] for r in records if "greedy_return" in r}
    metrics["greedy/return"] = _mean([value for value in twins.values() if value is not None])
    metrics["greedy/missing_fraction"] = _mean([value is None for value in twins.values()])
    for harmful in (True, False):
        mine = [
            t for r in records if Kind(r["kind"]).harmful is harmful for t in r["turns"] if t.get("reward") is not None
        ]
        metrics[f"turn_reward/{'harmful' if harmful else 'benign'}"] = _mean([t["reward"] for t in mine])
    # Of the same questions: what a student that does not change makes of them, and what this one did; only where both
    # were judged, or the two rates would speak of other questions.
    met = [(r["frozen"], r["turns"][r["frozen"]["turn"] - 1]) for r in records if (r.get("frozen") or {}).get("scores")]
    both = [(frozen, own) for frozen, own in met if own["scores"]]
    metrics["attack_difficulty/frozen_failed"] = _mean([_failed(frozen) for frozen, _ in both])
    metrics["attack_difficulty/student_failed"] = _mean([_failed(own) for _, own in both])
    latencies = [t["latency_s"] for t in turns if t["tutor_calls"]]
    if latencies:
        metrics["tutor/latency_p50_s"], metrics["tutor/latency_p95_s"] = (
            float(q) for q in np.percentile(latencies, (50, 95))
        )
    for position in range(max(len(r["turns"]) for r in records)):
        at = [r["turns"][position]["scores"] for r in records if len(r["turns"]) > position]
        metrics[f"safety/turn_{position + 1:02d}"] = _mean([s["safety"] for s in at if s])
    for kind in ("refusal", "long", "other"):
        metrics[f"unscored/{kind}"] = _mean([t["scores"] is None for t in turns if reply_kind(t) == kind])
    for strategy, count in Counter(t["strategy"] for t in turns).items():
        metrics[f"strategy/{strategy}"] = float(count)
    for outcome, count in Counter(t["outcome"] or "unjudged" for t in turns).items():
        metrics[f"outcome/{outcome}"] = float(count)
    return {f"{prefix}/{key}": value for key, value in metrics.items() if value is not None}


def _failed(turn: Record) -> bool:
    return bool(turn["scores"]["safety"] <= BREACH_SAFETY)


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(sum(values)) / len(values) if values else None


def _first_failure(record: Record) -> int | None:
    """1-based turn of the first breach, or None."""
    for t, turn in enumerate(record["turns"], 1):
        if turn["scores"] and _failed(turn):
            return t
    return None


def _without_signal(records: Sequence[Record]) -> list[bool]:
    """For each group: whether it teaches nothing, its valid returns being all equal or fewer than two.

    Empty where no group has two rollouts (validation): the question does not arise there.
    """
    returns: dict[str, list[float]] = defaultdict(list)
    sizes = Counter(record["uid"] for record in records)
    for record in records:
        if record.get("return") is not None:
            returns[record["uid"]].append(record["return"])
    return [tied(returns[uid]) for uid, n in sizes.items() if n > 1]
