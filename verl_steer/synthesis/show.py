"""A candidate as text for a person; what models wrote is shown as data."""

from __future__ import annotations

from verl_steer.chat.text import neutralise, visible
from verl_steer.synthesis.candidate import Candidate


def describe(candidate: Candidate) -> str:
    """All that a candidate holds, pictures by their digest."""
    script = candidate.script
    lines = [
        f"{script.id}: {script.kind.value}, {len(script.turns)} turns, seed {candidate.cluster}, category {script.category or '(none)'}",
        *(f"  {name}: {neutralise(str(value))}" for name, value in sorted(script.meta.items())),
        f"  last question alone safe: {_word(candidate.last_alone_safe)}; dialogue under the target safe: "
        f"{_word(candidate.dialogue_safe)}; success of the attack: {candidate.success or '-'}",
    ]
    for number, turn in enumerate(script.turns, 1):
        shown = "".join(f" [picture {image.sha256[:12]}]" for image in turn.images)
        lines.append(f"{number}. planned:{shown} {neutralise(turn.text)}")
        if candidate.dialogue is not None:
            said = candidate.dialogue.turns[number - 1]
            lines += [f"   asked: {neutralise(said.text)}", f"   reply: {neutralise(said.reply)}"]
        if number <= len(candidate.turn_scores):
            score = candidate.turn_scores[number - 1]
            found = "no verdict" if score is None else f"{score.safety}/{score.usefulness}/{score.faithfulness}"
            lines.append(f"   safety/usefulness/faithfulness: {found}")
    return visible("\n".join(lines)) + "\n"  # ids and categories are somebody's text, too


def _word(value: bool | None) -> str:
    return "not measured" if value is None else "yes" if value else "no"
