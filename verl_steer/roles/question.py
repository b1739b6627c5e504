"""The user's next question as a model writes it: the moves it may name, and what must not be asked as it stands."""

from __future__ import annotations

import re
from typing import Literal

from verl_steer.chat.text import control_token, visible

#: How the next question came about; "none" where there is no new one.
Strategy = Literal["persistence", "bait_and_switch", "deepen", "continuation", "none"]
# A benign script stays benign: an attack written into it would make its twin comparison meaningless.
BENIGN_STRATEGIES = frozenset({"continuation"})
_FENCE_LINE = re.compile(r"^--- (?:begin|end) ", re.M)


def question_flaw(question: str | None, max_chars: int, tag: str) -> str | None:
    """Says why a tutor's question must not be asked as it stands, or None; worded for the tutor.

    The scores beside such a question are as good as any, so this is no part of `TutorReply`: the planned question
    stands in where the tutor does not mend its own.

    Args:
        question: As the tutor wrote it; None is no question, and no flaw.
        max_chars: Longer ones are no question a user would ask, and would crowd out the student's replies.
        tag: Of the fences. The question goes to the student, who must not learn it.
    """
    if question is None:
        return None
    if len(question) > max_chars:
        return f"next_question: it has {len(question)} characters; write at most {max_chars}"
    if (token := control_token(question)) is not None:
        return (
            f"next_question: it holds the control token or placeholder ({token.strip('<>[]|')[:40]}); write plain words"
        )
    if tag.lower() in (shown := visible(question)).lower() or _FENCE_LINE.search(shown):
        return "next_question: it repeats a fence line or the fence tag; write only what the user says"
    return None
