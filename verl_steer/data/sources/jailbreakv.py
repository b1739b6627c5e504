"""JailBreakV-28K (Luo et al. 2024): jailbreak prompts beside pictures, in one CSV with picture files next to it.

Columns: jailbreak_query (what is asked), image_path; also id, redteam_query, format, policy (the category).
Licence: MIT. Split: one. Kind: red_team. No replies. The plain red-team query goes to meta.
"""

import hashlib

from verl_steer.data.conversation import Conversation, Said
from verl_steer.data.sources.base import At, Record, Source, optional, text
from verl_steer.dialogue import Kind


def convert(record: Record, at: At) -> Conversation:
    """One row."""
    meta = {name: optional(record, name) for name in ("redteam_query", "format")}
    if query := meta["redteam_query"]:  # one query is asked in many jailbreaks, each beside another picture
        meta["source_id"] = f"{at.source}-{hashlib.sha256(query.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    return at.conversation(
        record["id"],
        kind=Kind.RED_TEAM,
        category=optional(record, "policy"),
        turns=[Said(text(record, "jailbreak_query"), at.pictures(record["image_path"]))],
        meta=meta,
    )


SOURCE = Source(
    name="jailbreakv",
    title="JailBreakV-28K, jailbreak prompts with pictures",
    hub="JailbreakV-28K/JailBreakV-28k",
    licence="mit",
    kind=Kind.RED_TEAM,
    splits="one",
    files=("JailBreakV_28K.csv",),
    layouts=(("id", "jailbreak_query", "redteam_query", "format", "policy", "image_path"),),
    pictures="files",
    replies=False,
    convert=convert,
)
