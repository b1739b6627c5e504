"""VLSBench (Hu et al. 2024): harmless-looking questions whose harm only the picture shows.

Columns: instruction_id, instruction, image_path, category, sub_category; data.json with imgs/ (from imgs.tar)
beside it. Licence: Apache-2.0. Split: one, a test set. Kind: obfuscated. No replies.
"""

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.sources.base import At, Record, Source, optional, text
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One row."""
    return at.conversation(
        record["instruction_id"],
        kind=Kind.OBFUSCATED,
        category=f"{text(record, 'category')} / {optional(record, 'sub_category')}",
        subset="VLS",
        turns=[Said(text(record, "instruction"), at.pictures(text(record, "image_path")))],
        meta={"origin": optional(record, "source")},
    )


SOURCE = Source(
    name="vlsbench",
    title="VLSBench, harm that only the picture shows",
    hub="Foreshhh/vlsbench",
    licence="apache-2.0",
    kind=Kind.OBFUSCATED,
    splits="one (test)",
    files=("data.json", "*.jsonl"),
    layouts=(("instruction_id", "instruction", "image_path", "category", "sub_category"),),
    pictures="files",
    replies=False,
    convert=convert,
)
