"""SafeDialBench (Cao et al. 2025): multi-turn jailbreak dialogues, text only.

Columns: JSONL with task (the category), method, scene, id, history: [{user, bot}]. Licence: none stated.
Split: one, a test set. Kind: obfuscated. The replies are the `bot` turns.
"""

from collections.abc import Mapping

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.rows import RowError
from verl_steer.data.sources.base import At, Record, Source, optional, text
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One dialogue."""
    history = record["history"]
    if not isinstance(history, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in history):
        raise RowError("column history is not a list of {user, bot}")
    return at.conversation(
        record["id"],
        kind=Kind.OBFUSCATED,
        category=optional(record, "task"),
        turns=[Said(text(turn, "user"), (), optional(turn, "bot") or None) for turn in history],
        meta={name: optional(record, name) for name in ("method", "scene")},
    )


SOURCE = Source(
    name="safedialbench",
    title="SafeDialBench, multi-turn jailbreaks in text",
    hub="",
    licence="",
    kind=Kind.OBFUSCATED,
    splits="one (test)",
    files=("*.jsonl",),
    layouts=(("task", "method", "scene", "id", "history"),),
    pictures="none",
    replies=True,
    convert=convert,
)
