"""Stage I, probe: picture and question -> a benign and a risk-obfuscated rewrite (paper, stage I, `Probe(x, q)`)."""

from __future__ import annotations

from pydantic import Field

from verl_steer.chat.structured import StrictReply
from verl_steer.dialogue import ImageRef
from verl_steer.roles.fill import Fill

ROLE = "probe"


class ProbeReply(StrictReply):
    """The two rewrites of a seed; what is in the picture comes first, so that both follow from it."""

    picture: str
    benign_question: str = Field(min_length=1)
    obfuscated_question: str = Field(min_length=1)


def fill(tag: str, question: str, category: str, images: tuple[ImageRef, ...]) -> Fill:
    """Asks for the rewrites of one seed.

    Args:
        tag: Of the fences.
        question: The seed's.
        category: Of the source, or "".
        images: The seed's pictures.
    """
    fields = (("seed question", question), *((("category", category),) if category else ()))
    return Fill(ROLE, tag, fields, "Write both rewrites of the seed question.", images)
