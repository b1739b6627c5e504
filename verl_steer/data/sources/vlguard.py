"""VLGuard (Zong et al. 2024): safe pictures with a safe and an unsafe question, unsafe pictures with one.

Columns: id, image (a path), safe, harmful_category, instr-resp: a list of {instruction | safe_instruction |
unsafe_instruction, response}; each of them is a row. Licence: gated, see its agreement. Splits: train, test.
Kind: benign for `safe_instruction`, else obfuscated. The reply is `response`.
"""

from collections.abc import Iterator, Mapping

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.rows import RowError
from verl_steer.data.sources.base import At, Record, Source, optional, text
from verl_steer.dialogue import Kind

_ASKS = ("instruction", "safe_instruction", "unsafe_instruction")


def expand(record: Record) -> Iterator[Record]:
    """One record a question."""
    items = record.get("instr-resp")
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, Mapping) for item in items):
        raise RowError("column instr-resp is not a list of {instruction, response}")
    for n, item in enumerate(items):
        yield {**record, "_item": item, "_n": n}


def convert(record: Record, at: At) -> Conversation:
    """One question."""
    item = record["_item"]
    asks = [name for name in _ASKS if item.get(name) is not None]
    if len(asks) != 1:
        raise RowError(f"instr-resp[{record['_n'] + 1}] must hold one of {', '.join(_ASKS)}, found {sorted(item)}")
    return at.conversation(
        f"{record['id']}-{record['_n']}",
        kind=Kind.BENIGN if asks[0] == "safe_instruction" else Kind.OBFUSCATED,
        category=" / ".join(filter(None, (optional(record, f"harmful_{c}") for c in ("category", "subcategory")))),
        turns=[Said(text(item, asks[0]), at.pictures(text(record, "image")), optional(item, "response") or None)],
        meta={"safe_image": bool(record["safe"]), "source_id": at.id(record["id"])},
    )


SOURCE = Source(
    name="vlguard",
    title="VLGuard, safe and unsafe questions about pictures",
    hub="ys-zong/VLGuard",
    licence="",
    kind=Kind.OBFUSCATED,
    splits="train, test",
    files=("train.json", "test.json"),
    layouts=(("id", "image", "safe", "harmful_category", "instr-resp"),),
    pictures="files",
    replies=True,
    convert=convert,
    expand=expand,
)
