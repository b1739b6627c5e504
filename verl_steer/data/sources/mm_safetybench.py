"""MM-SafetyBench (Liu et al. 2024): 13 scenarios, each question with a drawn (SD), a written (TYPO) or no picture.

Two publications. The hub's: id, question, image; SCENARIO/VARIANT.parquet. The original's: SCENARIO.json,
{qid: {Question, Changed Question, Rephrased Question, Rephrased Question(SD), ...}}, and pictures
SCENARIO/VARIANT/qid.jpg under --images; each qid is four rows: SD asks `Rephrased Question(SD)`, SD_TYPO and
TYPO ask `Rephrased Question`, Text_only asks `Changed Question`. Licence: CC BY-NC 4.0. Split: one, a test set.
Kind: obfuscated. No replies. Category: the scenario.
"""

import re
from collections.abc import Iterator

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.published import KEY
from verl_steer.data.sources.base import At, Record, Source, text
from verl_steer.dialogue import Kind

_ASKS = {
    "SD": "Rephrased Question(SD)",
    "SD_TYPO": "Rephrased Question",
    "TYPO": "Rephrased Question",
    "Text_only": "Changed Question",
}


def expand(record: Record) -> Iterator[Record]:
    """The original's four variants of a question."""
    if KEY not in record:
        yield record
        return
    for variant in _ASKS:
        yield {**record, "_variant": variant}


def convert(record: Record, at: At) -> Conversation:
    """One row of either publication."""
    if KEY in record:
        scenario, variant, qid = at.stem, record["_variant"], record[KEY]
        native = f"{variant}-{qid}"
        question = text(record, _ASKS[variant])
        picture = None if variant == "Text_only" else f"{scenario}/{variant}/{qid}.jpg"
    else:
        scenario, variant, qid = at.group, at.stem, record["id"]
        native = f"{scenario}-{qid}"
        question, picture = text(record, "question"), record.get("image")
    return at.conversation(
        native,
        kind=Kind.OBFUSCATED,
        category=re.sub(r"^\d+-", "", scenario),
        subset="MMSafe",
        turns=[Said(question, at.pictures(picture))],
        # The variants of a qid ask the same thing.
        meta={"variant": variant, "source_id": f"{at.source}-{scenario}-{qid}"},
    )


SOURCE = Source(
    name="mm_safetybench",
    title="MM-SafetyBench, 13 scenarios, drawn and written",
    hub="PKU-Alignment/MM-SafetyBench",
    licence="cc-by-nc-4.0",
    kind=Kind.OBFUSCATED,
    splits="one (test): SD, SD_TYPO, TYPO, Text_only",
    files=("*.parquet", "[0-9][0-9]-*.json"),
    layouts=(
        ("id", "question"),
        (KEY, "Question", "Changed Question", "Rephrased Question", "Rephrased Question(SD)"),
    ),
    pictures="row",
    replies=False,
    convert=convert,
    expand=expand,
    folder_in_id=True,
)
