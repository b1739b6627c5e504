"""Dialogues in LLaMA-Factory's sharegpt form: as many `<image>` in the texts as pictures.

Columns: messages: [{role, content}] (or conversations: [{from, value}]), images: [path], absent where there are
none. Licence: that of its sources. Kind: benign unless --kind says otherwise.
"""

from verl_steer.data.conversation import Conversation
from verl_steer.data.sources.base import At, Record, Source
from verl_steer.data.sources.messages import exchanges
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One dialogue."""
    messages = record.get("messages", record.get("conversations"))
    system, turns = exchanges(messages, at.pictures(record.get("images")))
    return at.conversation(
        record.get("id"), kind=Kind.BENIGN, system=system or str(record.get("system") or ""), turns=turns
    )


SOURCE = Source(
    name="sharegpt",
    title="dialogues in LLaMA-Factory's sharegpt form",
    hub="",
    licence="",
    kind=Kind.BENIGN,
    splits="one",
    files=("*.json", "*.jsonl"),
    layouts=(("messages",), ("conversations",)),
    pictures="files",
    replies=True,
    convert=convert,
)
