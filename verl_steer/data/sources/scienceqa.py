"""ScienceQA (Lu et al. 2022), in the form of derek-thomas/ScienceQA: school questions with choices.

Columns: image (may be null), question, choices, answer (an index), hint, lecture, solution. Licence: CC BY-SA
4.0. Splits: train 12.7k, validation and test 4.24k each. Kind: benign. The choices stand under the question,
the reply is the published solution and then the choice; topic (if there) is the category.
"""

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.rows import RowError
from verl_steer.data.sources.base import At, Record, Source, optional, text
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One row."""
    choices, index = record["choices"], record["answer"]
    if not isinstance(choices, (list, tuple)) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise RowError("column choices is not a list of texts")
    if type(index) is not int or not 0 <= index < len(choices):
        raise RowError(f"column answer is {index!r}, not an index into {len(choices)} choices")
    listed = [f"{chr(ord('A') + n)}. {choice}" for n, choice in enumerate(choices)]
    question = [text(record, "question"), optional(record, "hint"), *listed]
    reply = [optional(record, "solution"), f"The answer is {listed[index]}"]
    return at.conversation(
        kind=Kind.BENIGN,
        category=optional(record, "topic") or "science",
        turns=[Said("\n".join(filter(None, question)), at.pictures(record["image"]), "\n".join(filter(None, reply)))],
        answer=listed[index],
        meta={"lecture": optional(record, "lecture")},
    )


SOURCE = Source(
    name="scienceqa",
    title="ScienceQA, school questions with choices",
    hub="derek-thomas/ScienceQA",
    licence="cc-by-sa-4.0",
    kind=Kind.BENIGN,
    splits="train, validation, test",
    files=("*.parquet",),
    layouts=(("image", "question", "choices", "answer", "hint", "lecture", "solution"),),
    pictures="row",
    replies=True,
    convert=convert,
)
