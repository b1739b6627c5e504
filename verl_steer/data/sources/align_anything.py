"""Align-Anything, text-image-to-text (Ji et al. 2024): everyday questions about pictures, two replies compared.

Columns: question, image, response_1, response_2, overall_response (1 or 2: the better one). Licence: CC BY-NC
4.0. Splits: train 40k, val 1k. Kind: benign. The reply is the better one.
"""

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.rows import RowError
from verl_steer.data.sources.base import At, Record, Source, optional, text
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One row."""
    better = optional(record, "overall_response").removesuffix(".0")
    if better not in ("1", "2"):
        raise RowError(f"column overall_response is {record['overall_response']!r}, not 1 or 2")
    reply = text(record, f"response_{better}")
    turns = [Said(text(record, "question"), at.pictures(record["image"]), reply)]
    return at.conversation(kind=Kind.BENIGN, category="general", turns=turns)


SOURCE = Source(
    name="align_anything",
    title="Align-Anything, everyday questions about pictures",
    hub="PKU-Alignment/align-anything",
    licence="cc-by-nc-4.0",
    kind=Kind.BENIGN,
    splits="train, val (config text-image-to-text)",
    files=("*.parquet",),
    layouts=(("question", "image", "response_1", "response_2", "overall_response"),),
    pictures="row",
    replies=True,
    convert=convert,
)
