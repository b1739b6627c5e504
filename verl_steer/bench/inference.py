"""Plays the rows of a bench with a model: turns one after the other, dialogues side by side.

Whoever the model is, it is a `Chat`: an endpoint, a checkpoint in this process (`verl_steer/local`) or a constant policy
(`policies.py`). So all of them are asked the same messages in the same way, and a journal between them and this
module gives answers of an interrupted run again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from verl_steer.bench.files import BenchFile, Played, PlayedTurn
from verl_steer.bench.lines import Lines
from verl_steer.bench.pictures import put_image
from verl_steer.bench.rows import Item
from verl_steer.chat.client import Chat
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.dialogue import Script
from verl_steer.roles.attacker import Attack, Attacker
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.frozen import chat_messages
from verl_steer.roles.tutor import Exchange, TutorRequest
from verl_steer.whole import writable

_THINKING = re.compile(r"<think(?:ing)?>(?P<inside>.*?)(?:</think(?:ing)?>|\Z)", re.S)
Progress = Callable[[Played], None]


@dataclass(frozen=True)
class Settings:
    """How a bench is played.

    Attributes:
        max_tokens: Of each reply.
        temperature: Of the model's sampling.
        seed: Of the model's sampling and the attacker's choices.
        system: System prompt in place of the rows' own, or None.
        deadline_s: Of each call, retries included.
        concurrency: Dialogues under way at once.
        fence_key: Makes the tags of the attacker's fences; see `fence_key`.
    """

    max_tokens: int = 768
    temperature: float = 0.0
    seed: int = 0
    system: str | None = None
    deadline_s: float = 240.0
    concurrency: int = 16
    fence_key: bytes = field(default=b"", repr=False)


def fence_key(bench: BenchFile) -> bytes:
    """The key of a bench's fences: the same for every model, so that all meet the same prompts.

    The model that is tested sees the questions only, never the file, so it cannot know the tags.
    """
    return bytes.fromhex(bench.sha256)


async def play_all(
    items: Iterable[Item | Played],
    chat: Chat,
    attacker: Attacker | None,
    settings: Settings,
    folder: Path,
    lines: Lines[Played],
    progress: Progress = lambda played: None,
) -> list[Played]:
    """Plays what has not been played, and settles `lines` in the rows' order.

    Args:
        items: The bench's rows in order; read one at a time, so that pictures never fill the memory.
        chat: The model.
        attacker: Rewrites the planned questions, or None: the script is followed.
        settings: See there.
        folder: The run's; pictures are stored in it before the dialogue is, those of played ones where they have gone.
        lines: `dialogues.jsonl`; what is done in it already is not played again.
        progress: Called with every dialogue as it ends.

    Returns:
        One line a row, in order.
    """
    before = {played.id: played for played in lines.found if played.status == "done"}
    slots = asyncio.Semaphore(settings.concurrency)
    found: dict[int, Played] = {}

    def ended(at: int, played: Played, new: bool = True) -> None:
        if new:
            lines.append(played)
        found[at] = played
        progress(played)

    async def one(at: int, item: Item) -> None:
        try:
            ended(at, await play(item, chat, attacker, settings))
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        for at, item in enumerate(items):
            if isinstance(item, Played):
                ended(at, item)
                continue
            for image in (image for turn in item.script.turns for image in turn.images):
                put_image(folder, image)
            if (known := before.get(item.script.seed_id)) is not None:
                # Which rows belong together is the bench's to say, not what an older version wrote.
                ended(at, known.model_copy(update={"cluster": item.cluster}), new=False)
            else:
                await slots.acquire()
                group.create_task(one(at, item))
    in_order = [found[at] for at in sorted(found)]
    lines.settle(in_order)
    return in_order


async def play(item: Item, chat: Chat, attacker: Attacker | None, settings: Settings) -> Played:
    """One dialogue; it ends early only where the model gave no reply, or the attacker could not be asked."""
    script = item.script
    system = script.system if settings.system is None else settings.system
    history: list[Exchange] = []
    turns: list[PlayedTurn] = []
    why = ""
    for number, planned in enumerate(script.turns, 1):
        # The row and the turn alone, never the model: all models meet the same luck, and pair.
        key = f"{settings.seed}|{script.seed_id}|{number}"
        question, strategy = planned.text, "script"
        if attacker is not None and history:
            attack = await _attack(attacker, script, history, number, key, settings)
            if attack.failed:
                why = f"turn {number}: the attacker: {attack.failed}"
                break
            question, strategy = attack.question or planned.text, attack.strategy
        found = await chat.complete(
            chat_messages(system, history, question, planned.images),
            key=key,
            deadline_s=settings.deadline_s,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )
        turn = _turn(question, strategy, found)
        turns.append(turn)
        if not turn.answered:
            why = f"turn {number}: {found.outcome.value}: {found.detail}"
            break
        history.append(Exchange(question, turn.reply, planned.images, thinking_of(turn.reply)))
    return Played(
        id=script.seed_id,
        subset=item.subset,
        category=script.category,
        source=script.source,
        kind=script.kind,
        cluster=item.cluster,
        pair=item.pair,
        planned_turns=len(script.turns),
        status="failed" if why else "done",
        why=why,
        images=tuple(tuple(image.sha256 for image in turn.images) for turn in script.turns),
        system=system,
        turns=tuple(turns),
    )


def thinking_of(reply: str) -> str:
    """The part of a reply inside its thinking block; an unclosed block reaches to the end; "" without one."""
    found = _THINKING.search(reply)
    return found["inside"] if found else ""


def cut_short(dialogues: Iterable[Played]) -> tuple[int, int]:
    """Replies, and how many of them ended at max_tokens and not where the model would have ended them."""
    replies = [turn for played in dialogues for turn in played.turns if turn.answered]
    return len(replies), sum(turn.finish_reason == "length" for turn in replies)


def history_of(played: Played, images: Iterable[tuple[object, ...]]) -> Iterator[Exchange]:
    """The exchanges of a played dialogue that have a reply, as a judge sees them."""
    for turn, shown in zip(played.turns, images, strict=False):
        if turn.answered:
            yield Exchange(turn.question, turn.reply, tuple(shown), thinking_of(turn.reply))  # type: ignore[arg-type]


async def _attack(
    attacker: Attacker, script: Script, history: list[Exchange], number: int, key: str, settings: Settings
) -> Attack:
    request = TutorRequest(
        script=script,
        history=tuple(history),
        planned_next=script.turns[number - 1],
        adapt=True,
        random_key=key,
        fence=fence_tag(settings.fence_key, script.seed_id),
        deadline_s=settings.deadline_s,
    )
    return await attacker.attack(request)


def _turn(question: str, strategy: str, found: ChatResult) -> PlayedTurn:
    reply = found.text or (found.detail if found.outcome is Outcome.REFUSED else "")
    return PlayedTurn(
        question=question,
        strategy=strategy,
        reply=writable(reply),
        outcome=found.outcome,
        finish_reason=found.finish_reason,
        completion_tokens=found.completion_tokens,
        latency_s=found.latency_s,
    )
