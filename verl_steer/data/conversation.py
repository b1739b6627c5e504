"""Conversation: what an adapter makes of one published row, and the split rows that come out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_steer.data.rows import RowError
from verl_steer.data.schemas import AnyRow, BenchRow, RlRow, ScriptRow, SeedRow, SftRow, build
from verl_steer.data.wording import clean
from verl_steer.dialogue import ImageRef, Kind

SYSTEM = "system"  # where a seed keeps the system prompt in its meta; no adapter uses the name


@dataclass(frozen=True)
class Said:
    """One exchange of a source; `reply` is None where the source has none."""

    text: str
    images: Sequence[ImageRef] = ()
    reply: str | None = None


@dataclass(frozen=True)
class Conversation:
    """A source's row, not yet checked; texts may still hold control tokens.

    Attributes:
        subset: Row of the bench tables, or "" for the source's name.
        answer: Reference answer of the last question, or None.
    """

    id: str
    source: str
    kind: Kind
    turns: Sequence[Said]
    licence: str = ""
    category: str = ""
    system: str = ""
    subset: str = ""
    answer: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def to_row(conversation: Conversation, split: str, index: int) -> AnyRow:
    """The row of a split.

    Args:
        conversation: What an adapter gave.
        split: "seed", "script", "rl", "sft" or "bench".
        index: Position in the split (RL rows carry it).

    Raises:
        RowError: The conversation cannot be such a row.
    """
    c = conversation
    common = {
        "id": c.id,
        "source": c.source,
        "licence": c.licence,
        "category": clean(c.category),
        "kind": c.kind,
        "meta": c.meta,
    }
    if split == "seed":
        if len(c.turns) != 1:
            raise RowError(f"row {c.id!r}: a seed is one question, this has {len(c.turns)} user turns")
        said = c.turns[0]
        # A seed has no column for it, and the risk of a question may hang on it.
        common["meta"] = {**c.meta, **({SYSTEM: clean(c.system)} if clean(c.system) else {})}
        return build(
            SeedRow, {**common, "question": clean(said.text), "images": tuple(said.images), "answer": _answer(c)}
        )
    system = {"system": clean(c.system)}
    if split == "sft":
        return build(SftRow, {**common, **system, **_answered(c)})
    values = {**common, **system, "answer": _answer(c), "turns": [_question(said) for said in c.turns]}
    if split == "rl":
        return build(RlRow, {**values, "index": index})
    if split == "bench":
        return build(BenchRow, {**values, "subset": c.subset or c.source})
    return build(ScriptRow, values)


def _answered(c: Conversation) -> dict[str, Any]:
    """The exchanges up to the last reply; how many questions were left without one stands in meta."""
    last = max((t for t, said in enumerate(c.turns, 1) if said.reply is not None), default=0)
    if missing := [t for t, said in enumerate(c.turns[:last], 1) if said.reply is None] or [1][last:]:
        raise RowError(f"row {c.id!r}: turn {missing[0]} has no reply to learn from")
    turns = [{**_question(said), "reply": clean(said.reply or "")} for said in c.turns[:last]]
    unanswered = len(c.turns) - last
    return {"turns": turns, "meta": {**c.meta, **({"unanswered": unanswered} if unanswered else {})}}


def _question(said: Said) -> dict[str, Any]:
    return {"text": clean(said.text), "images": tuple(said.images)}


def _answer(conversation: Conversation) -> str | None:
    return clean(conversation.answer) or None if conversation.answer is not None else None
