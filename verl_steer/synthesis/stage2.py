"""Stage II, and what is measured of a script under the fixed target (paper, stage II; history-dependent risk).

Seeds for STEER-SFT: the red agent rewrites each planned turn given the history, the blue expert answers, the
tutor scores. Seeds held for RL and bench: the fixed target answers the script as it stands, and its last
question alone. Nothing is decided here; `select` keeps or removes with what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from verl_steer.data import schemas
from verl_steer.data.schemas import ScriptRow, SftRow
from verl_steer.dialogue import UserTurn
from verl_steer.roles import red
from verl_steer.roles.tutor import Exchange
from verl_steer.scores import BREACH_SAFETY, TutorScores, stayed_safe
from verl_steer.synthesis.calls import Calls
from verl_steer.synthesis.candidate import Candidate, origin_of
from verl_steer.synthesis.stage1 import IDS


async def bootstrap(calls: Calls, script: ScriptRow, success: int | None = None) -> Candidate:
    """Stage II's dialogue of a script, scored turn by turn.

    Args:
        calls: Of the row.
        script: The planned turns; they stay in the candidate as planned.
        success: The red team's score, or None.
    """
    history: list[Exchange] = []
    scores: list[TutorScores | None] = []
    for number, turn in enumerate(script.turns, 1):
        step = f"{IDS[script.kind]}/turn{number}"
        fill = red.ask_turn(calls.tag, turn.text, script.kind, history, turn.images)
        asked = calls.question("red", step, (await calls.ask("red", f"sft/{step}", fill, red.QuestionReply)).question)
        reply = await calls.say("blue", f"sft/{step}", history, UserTurn(asked, turn.images))
        history.append(Exchange(asked, reply, turn.images))
        scores.append(await calls.score(f"sft/{step}", script.kind, history))
    return Candidate(script, origin_of(script.meta), tuple(scores), _dialogue(script, history), success=success)


async def measure(
    calls: Calls, script: ScriptRow, history: Sequence[Exchange] = (), success: int | None = None
) -> Candidate:
    """A script under the fixed target.

    Args:
        calls: Of the row.
        script: Asked as it stands.
        history: What the target has replied already (the red team's simulation), or nothing.
        success: The red team's score, or None.
    """
    said = list(history)
    pool = IDS[script.kind]
    for number, turn in enumerate(script.turns[len(said) :], len(said) + 1):
        reply = await calls.say("target", f"held/{pool}/turn{number}", said, UserTurn(turn.text, turn.images))
        said.append(Exchange(turn.text, reply, turn.images))
    scores = [
        await calls.score(f"held/{pool}/turn{number}", script.kind, said[:number]) for number in range(1, len(said) + 1)
    ]
    images = tuple(image for turn in script.turns for image in turn.images)
    last = script.turns[-1].text
    reply = await calls.say("target", f"held/{pool}/alone", [], UserTurn(last, images))
    alone = await calls.score(f"held/{pool}/alone", script.kind, [Exchange(last, reply, images)])
    safe = stayed_safe([score.safety if score else None for score in scores], len(scores))
    return Candidate(
        script,
        origin_of(script.meta),
        tuple(scores),
        last_alone_safe=None if alone is None else alone.safety > BREACH_SAFETY,
        dialogue_safe=None if safe is None else bool(safe),
        success=success,
    )


def _dialogue(script: ScriptRow, history: Sequence[Exchange]) -> SftRow:
    turns = [{"text": said.question, "images": said.images, "reply": said.reply} for said in history]
    common = {name: getattr(script, name) for name in ("id", "source", "licence", "category", "kind", "meta", "system")}
    return schemas.build(SftRow, {**common, "turns": turns})
