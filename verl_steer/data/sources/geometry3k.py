"""Geometry3K (Lu et al. 2021), in the form of hiyouga/geometry3k: geometry problems with their diagrams.

Columns: images (a list), problem (holds one `<image>` a picture), answer. Licence: none on its card. Splits:
train 2.1k, validation 300, test 601. Kind: benign. The answer is reference answer and reply.
"""

from verl_steer.data.conversation import Conversation
from verl_steer.data.sources.base import At, Record, Source, text
from verl_steer.data.sources.messages import exchanges
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One row."""
    answer = text(record, "answer")
    messages = [{"role": "user", "content": text(record, "problem")}, {"role": "assistant", "content": answer}]
    _, turns = exchanges(messages, at.pictures(record["images"]))
    return at.conversation(kind=Kind.BENIGN, category="geometry", turns=turns, answer=answer)


SOURCE = Source(
    name="geometry3k",
    title="Geometry3K, geometry problems with diagrams",
    hub="hiyouga/geometry3k",
    licence="",
    kind=Kind.BENIGN,
    splits="train, validation, test",
    files=("*.parquet",),
    layouts=(("images", "problem", "answer"),),
    pictures="row",
    replies=True,
    convert=convert,
)
