"""CoSafe (Yu et al., EMNLP 2024): multi-turn, text-only dialogues whose last user turn is the unsafe one.

Columns: JSONL, each line a list of {role, content}; the file's stem is the category. Licence: none given.
Split: one. Kind: obfuscated. The last question has no reply, so an SFT dialogue ends before it.
"""

from verl_steer.data.conversation import Conversation
from verl_steer.data.sources.base import At, Record, Source
from verl_steer.data.sources.messages import exchanges
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One dialogue."""
    system, turns = exchanges(record["messages"])
    return at.conversation(kind=Kind.OBFUSCATED, category=at.stem, system=system, turns=turns)


SOURCE = Source(
    name="cosafe",
    title="CoSafe, multi-turn coreference attacks in text",
    hub="",
    licence="",
    kind=Kind.OBFUSCATED,
    splits="one",
    files=("*.jsonl",),
    layouts=(("messages",),),
    pictures="none",
    replies=True,
    convert=convert,
)
