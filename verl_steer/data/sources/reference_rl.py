"""The RL file of the paper's reference code: the first message, and the user turns to come in its metadata.

Columns: JSONL with question: [messages], metadata: {rest_messages, question_id, image?}, images: [path], label.
`rest_messages` are the later user turns, as texts or messages; the pictures belong to the first question. We
read `label` as the reference answer. Licence: that of its sources. Kind: obfuscated unless --kind says otherwise.
"""

from collections.abc import Mapping

from verl_steer.data.conversation import Conversation
from verl_steer.data.rows import RowError
from verl_steer.data.sources.base import At, Record, Source, optional
from verl_steer.data.sources.messages import exchanges
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One script."""
    metadata = record["metadata"]
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("rest_messages"), (list, tuple)):
        raise RowError("column metadata needs a list rest_messages")
    if not isinstance(record["question"], (list, tuple)):
        raise RowError("column question must be a list of messages")
    rest = [{"role": "user", "content": m} if isinstance(m, str) else m for m in metadata["rest_messages"]]
    pictures = at.pictures(record.get("images") or metadata.get("image"))
    system, turns = exchanges([*record["question"], *rest], pictures, unmarked=True)
    native = metadata.get("question_id")
    return at.conversation(
        native,
        **({"id": str(native)} if native else {}),
        kind=Kind.OBFUSCATED,
        system=system,
        turns=turns,
        answer=optional(record, "label") or None,
    )


SOURCE = Source(
    name="reference_rl",
    title="RL file of the paper's reference code",
    hub="",
    licence="",
    kind=Kind.OBFUSCATED,
    splits="one",
    files=("*.jsonl",),
    layouts=(("question", "metadata"),),
    pictures="files",
    replies=False,
    convert=convert,
)
