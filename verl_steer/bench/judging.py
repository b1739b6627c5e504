"""Judges every reply of a run; asked again, it fills exactly the verdicts that are missing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_steer.bench.files import Judged, Played
from verl_steer.bench.inference import history_of
from verl_steer.bench.lines import BenchError, Lines
from verl_steer.bench.pictures import images_of
from verl_steer.chat.outcome import Outcome
from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.judge import Judgement, JudgeRequest, TurnJudge

Place = tuple[str, int]
Progress = Callable[[Judged], None]


@dataclass(frozen=True)
class Settings:
    """How a run is judged.

    Attributes:
        seed: Of the judge's sampling.
        deadline_s: Of each verdict.
        concurrency: Verdicts asked for at once.
        fence_key: Makes the tags of the fences; see `inference.fence_key`.
    """

    fence_key: bytes
    seed: int = 0
    deadline_s: float = 240.0
    concurrency: int = 32


def places_of(dialogues: Sequence[Played]) -> list[Place]:
    """(id, turn) of every reply, in order: of failed dialogues too, as far as they went."""
    return [(d.id, n) for d in dialogues for n, turn in enumerate(d.turns, 1) if turn.answered]


def said(dialogue: Played) -> list[str]:
    """Digest of the conversation up to each turn's reply: a verdict on other words is no verdict on these.

    Of the JSON list of all exchanges so far, hashed as it grows.
    """
    found, so_far = [], hashlib.sha256(b"[")
    for n, turn in enumerate(dialogue.turns):
        so_far.update(((", " if n else "") + json.dumps([turn.question, turn.reply])).encode())
        whole = so_far.copy()
        whole.update(b"]")
        found.append(whole.hexdigest()[:16])
    return found


def standing(dialogues: Sequence[Played], verdicts: Mapping[Place, Judged]) -> dict[Place, Judged]:
    """The verdicts but for those on a conversation that went otherwise than the run's does by now."""
    spoken = {(d.id, n): digest for d in dialogues for n, digest in enumerate(said(d), 1)}
    return {place: line for place, line in verdicts.items() if not line.said or line.said == spoken.get(place)}


async def judge_all(
    dialogues: Sequence[Played],
    scripts: Mapping[str, Script],
    judge: TurnJudge,
    settings: Settings,
    folder: Path,
    lines: Lines[Judged],
    progress: Progress = lambda judged: None,
) -> list[Judged]:
    """Asks for every verdict that is not there, and settles `lines` in the dialogues' order.

    Args:
        dialogues: Of the run.
        scripts: The bench's scripts by id, for a judge by rules; {}: the judge sees what was said only.
        judge: Who judges.
        settings: See there.
        folder: The run's, for its pictures.
        lines: The judge's file; an `ok` line on these very words stands, everything else is asked for again.
        progress: Called with every verdict as it comes.

    Returns:
        One line a reply, in order.
    """
    places = places_of(dialogues)
    found = {(line.id, line.turn): line for line in lines.found if line.outcome is Outcome.OK}
    if strangers := sorted({place[0] for place in found} - {d.id for d in dialogues}):
        raise BenchError(
            f"{lines.path} judges {strangers[0]!r}, which the run does not hold: it is another run's; remove the file"
        )
    found = standing(dialogues, found)
    for line in found.values():
        progress(line)
    slots = asyncio.Semaphore(settings.concurrency)

    async def one(request: JudgeRequest, place: Place, spoken: str) -> None:
        try:
            verdict = _line(place, await judge.judge(request), spoken)
            lines.append(verdict)
            found[place] = verdict
            progress(verdict)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        for dialogue in dialogues:
            missing = [n for n, turn in enumerate(dialogue.turns, 1) if turn.answered and (dialogue.id, n) not in found]
            if not missing:
                continue
            spoken = said(dialogue)
            for request, turn in _requests(dialogue, scripts, settings, folder, missing):
                await slots.acquire()
                group.create_task(one(request, (dialogue.id, turn), spoken[turn - 1]))
    in_order = [found[place] for place in places]
    lines.settle(in_order)
    return in_order


def _requests(
    dialogue: Played, scripts: Mapping[str, Script], settings: Settings, folder: Path, turns: Sequence[int]
) -> list[tuple[JudgeRequest, int]]:
    history = tuple(history_of(dialogue, images_of(folder, dialogue)))
    script = scripts.get(dialogue.id) or _script(dialogue)
    return [
        (
            JudgeRequest(
                script=script,
                system=dialogue.system,
                history=history[:turn],
                random_key=f"{settings.seed}|{dialogue.id}|{turn}",
                fence=fence_tag(settings.fence_key, dialogue.id),
                deadline_s=settings.deadline_s,
            ),
            turn,
        )
        for turn in turns
    ]


def _script(dialogue: Played) -> Script:
    """What can be said of the script from the run alone."""
    turns = tuple(UserTurn(turn.question) for turn in dialogue.turns)
    return Script(dialogue.id, dialogue.kind or Kind.BENIGN, turns, dialogue.category, dialogue.source, dialogue.system)


def _line(place: Place, verdict: Judgement, spoken: str) -> Judged:
    return Judged(
        id=place[0],
        turn=place[1],
        outcome=verdict.outcome,
        harmlessness=verdict.harmlessness,
        helpfulness=verdict.helpfulness,
        reason=verdict.reason,
        calls=verdict.calls,
        latency_s=verdict.latency_s,
        said=spoken,
    )
