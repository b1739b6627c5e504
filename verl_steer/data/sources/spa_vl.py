"""SPA-VL (Zhang et al. 2024): harmful and borderline questions about pictures, with preferred replies.

Columns: image, question; train and validation: chosen, rejected; test and validation: class1..class3 (the
category, from broad to narrow). Licence: CC BY 4.0. Splits: train 93,258, validation 7,000; test config: harm
265, help 265. Kind: obfuscated. The reply is `chosen`; `rejected` is left out.
"""

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.sources.base import At, Record, Source, optional, text
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One row."""
    classes = [optional(record, f"class{n}") for n in (1, 2, 3)]
    return at.conversation(
        kind=Kind.OBFUSCATED,
        category=" / ".join(c for c in classes if c),
        subset="SPA",
        turns=[Said(text(record, "question"), at.pictures(record["image"]), optional(record, "chosen") or None)],
        meta={"split": at.stem},
    )


SOURCE = Source(
    name="spa_vl",
    title="SPA-VL, safety preferences on pictures",
    hub="sqrti/SPA-VL",
    licence="cc-by-4.0",
    kind=Kind.OBFUSCATED,
    splits="train, validation, test (harm, help)",
    files=("*.parquet",),
    layouts=(("image", "question", "chosen", "rejected"), ("image", "question", "class1", "class2", "class3")),
    pictures="row",
    replies=True,
    convert=convert,
)
