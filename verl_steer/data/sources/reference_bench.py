"""The bench file of the paper's reference code: fixed user turns about one picture.

Columns: JSONL with question_id, image (a path), messages_fixed: [messages]; perhaps category, source_category,
risk_trajectory. Licence: that of its sources. Kind: obfuscated unless --kind says otherwise. The subset is the
file's name unless --subset says otherwise.
"""

from verl_steer.data.conversation import Conversation
from verl_steer.data.sources.base import At, Record, Source, optional
from verl_steer.data.sources.messages import exchanges
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One script."""
    system, turns = exchanges(record["messages_fixed"], at.pictures(record.get("image")), unmarked=True)
    more = {name: record[name] for name in ("source_category", "risk_trajectory") if record.get(name) is not None}
    return at.conversation(
        record["question_id"],
        id=str(record["question_id"]),
        kind=Kind.OBFUSCATED,
        category=optional(record, "category"),
        subset=at.stem,
        system=system,
        turns=turns,
        meta=more,
    )


SOURCE = Source(
    name="reference_bench",
    title="bench file of the paper's reference code",
    hub="",
    licence="",
    kind=Kind.OBFUSCATED,
    splits="one",
    files=("*.jsonl",),
    layouts=(("question_id", "messages_fixed"),),
    pictures="files",
    replies=True,
    convert=convert,
)
