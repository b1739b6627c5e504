"""Is every piece of untrusted text in a tutor's prompt fenced? A check that shares no code with what builds prompts.

    faults = prompt_faults(messages, tag)
    assert not faults, faults

It reads a prompt line by line, as a person would: outside the fences only the layout's own lines may stand, each
named here once more; inside, no line may be a fence line of the tag, and no control token may survive.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from verl_steer.testing.hostile import CONTROL_TOKENS

_LABELS = "system prompt|user question|student answer|student thinking|planned question"
_OURS = re.compile(
    r"|# Turn [1-9][0-9]?|# Task|Judge the student's reply of turn [1-9][0-9]?\.|It comes with [1-9][0-9]* new image\(s\), not "
    r"shown to you\.|Rewrite it as the user's next question\.|Do not rewrite it: next_question null, strategy none\.|"
    r"There is no next question: next_question null, strategy none\.|Script: (?:harmful|benign)"
)


def prompt_faults(messages: Sequence[Mapping[str, Any]], tag: str) -> list[str]:
    """What is wrong with a tutor's prompt, one sentence each; [] if all untrusted text is where it belongs.

    Args:
        messages: The chat messages of one tutor call, the system message (all ours) first.
        tag: The fence tag that the prompt should use.
    """
    faults = []
    for number, part in enumerate(messages[1]["content"]):
        if part["type"] != "text":
            if part["type"] != "image_url" or not part["image_url"]["url"].startswith("data:image/"):
                faults.append(f"part {number} is neither text nor a picture")
            continue
        faults += [f"part {number}: {fault}" for fault in _lines_faults(part["text"], tag, first=number == 0)]
    if messages[0]["role"] != "system" or tag in str(messages[0]["content"]) or len(messages) != 2:
        faults.append("expected our own system message, without the tag, and one user message")
    return faults


def surviving_tokens(text: str) -> list[str]:
    """Control tokens that a tokenizer, a folding one too, would find in `text`."""
    shown = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Mn"))
    folded = unicodedata.normalize("NFKC", text)
    return [token for token in CONTROL_TOKENS if any(token in form for form in (text, shown, folded))]


def _lines_faults(text: str, tag: str, first: bool) -> list[str]:
    faults, inside = [f"the control token {token} survives" for token in surviving_tokens(text)], ""
    begin, end = re.compile(f"--- begin ({_LABELS}) {tag}"), re.compile(f"--- end ({_LABELS}) {tag}")
    lines = text.split("\n")
    for line in lines:
        if (
            odd := [c for c in line if c != "\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]
        ) != []:
            faults.append(f"an invisible character {odd[0]!r} in {line[:60]!r}")
        if inside:
            if line == f"--- end {inside} {tag}":
                inside = ""
            elif tag in line.lower():
                faults.append(f"the tag inside a fence: {line[:60]!r}")
        elif (opened := begin.fullmatch(line)) is not None:
            inside = opened[1]
        elif end.fullmatch(line) or not (_OURS.fullmatch(line) or (first and line == f"Fence tag: {tag}")):
            faults.append(f"not ours, and outside every fence: {line[:60]!r}")
    if inside:
        faults.append(f"the fence of {inside} is never closed")
    return faults
