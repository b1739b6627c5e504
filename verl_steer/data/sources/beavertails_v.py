"""BeaverTails-V (Ji et al. 2025): harmful questions about generated pictures, in 20 categories (one config each).

Columns: question, image, category; image_severity goes to meta. Two publications: with two replies
(response_1, response_2, is_response_1_safe, is_response_2_safe) and with one (response, is_response_safe).
Licence: CC BY-NC 4.0. Splits: train, evaluation. Kind: obfuscated. The reply is the first *safe* one; a row
without a safe reply has none to learn from.
"""

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.sources.base import At, Record, Source, optional, text, yes
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One row."""
    pairs = [("response", "is_response_safe"), *((f"response_{k}", f"is_response_{k}_safe") for k in (1, 2))]
    safe = [text(record, reply) for reply, flag in pairs if flag in record and yes(record[flag], flag)]
    category = text(record, "category")
    return at.conversation(
        f"{category}-{at.published.number}",
        kind=Kind.OBFUSCATED,
        category=category,
        subset="Beaver",
        turns=[Said(text(record, "question"), at.pictures(record["image"]), safe[0] if safe else None)],
        meta={"image_severity": optional(record, "image_severity"), "split": at.stem},
    )


_COMMON = ("question", "image", "category")
SOURCE = Source(
    name="beavertails_v",
    title="BeaverTails-V, harmful questions in 20 categories",
    hub="PKU-Alignment/BeaverTails-V",
    licence="cc-by-nc-4.0",
    kind=Kind.OBFUSCATED,
    splits="train, evaluation (20 category configs)",
    files=("*.parquet",),
    layouts=(
        (*_COMMON, "response", "is_response_safe"),
        (*_COMMON, "response_1", "response_2", "is_response_1_safe", "is_response_2_safe"),
    ),
    pictures="row",
    replies=True,
    convert=convert,
    folder_in_id=True,
)
