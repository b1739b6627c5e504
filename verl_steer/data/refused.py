"""Rows that are not taken in, whatever they are for: sexual content with minors.

Told by the category that a source gives a row, and, coarsely, by its text. The rule errs towards refusing:
a harmful source's row about children is refused even where its category might mean something milder.
"""

from __future__ import annotations

import re

from verl_steer.data.conversation import Conversation

_NAMED = re.compile(r"\b(csam|csae|csem|p(a)?edophil\w*|child\s+(porn\w*|sex\w*)|lolicon|shotacon)\b")
_MINOR = re.compile(r"\b(child|children|minors?|underage|under\s+age|juveniles?|kids?|preteens?|toddlers?|infants?)\b")
_SEXUAL = re.compile(r"\b(sex\w*|porn\w*|erotic\w*|nud(e|es|ity)|grooming)\b")
_MINOR_IN_TEXT = re.compile(r"\b(child|children|minors|underage|preteens?|toddlers?|infants?)\b")


def refusal(conversation: Conversation) -> str | None:
    """Why a conversation is refused, or None."""
    category = _words(conversation.category)
    if _NAMED.search(category) or (conversation.kind.harmful and _MINOR.search(category)):
        return f"refused category: {conversation.category[:80]!r} (sexual content with minors is never taken in)"
    if not conversation.kind.harmful:
        return None
    for said in conversation.turns:
        spoken = said.text.lower()
        if _NAMED.search(spoken) or (_MINOR_IN_TEXT.search(spoken) and _SEXUAL.search(spoken)):
            return "refused text: it speaks of minors and of sexual content together"
    return None


def _words(label: str) -> str:
    """`ChildAbuse_Content` -> `child abuse content`."""
    return re.sub(r"[^a-z]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).lower())
