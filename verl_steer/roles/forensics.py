"""Red team, module 1: what in the picture matters for the intent (paper, appendix F)."""

from __future__ import annotations

from verl_steer.chat.structured import StrictReply
from verl_steer.dialogue import ImageRef
from verl_steer.roles.fill import Fill

ROLE = "forensics"


class ForensicsReply(StrictReply):
    """What was seen: things, legible text, and the setting that gives them meaning."""

    objects: list[str]
    text: str
    context: str

    def summary(self) -> str:
        """All of it in one line, for the roles that come after."""
        seen = ", ".join(self.objects) or "nothing in particular"
        return f"objects: {seen}; text: {self.text or 'none'}; context: {self.context or 'none'}"


def fill(tag: str, question: str, images: tuple[ImageRef, ...]) -> Fill:
    """Asks what of the pictures bears on `question`."""
    return Fill(ROLE, tag, (("question", question),), "Describe what in the pictures bears on the question.", images)
