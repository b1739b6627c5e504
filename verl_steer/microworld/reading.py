"""A dialogue read from what it shows: the picture's text chunk, the questions, the replies.

The tutor, the judge that is served and the bench's attacker all read so; they differ in the reader of replies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from verl_steer.microworld.picture import Scene, scene_of
from verl_steer.microworld.reply import Surface
from verl_steer.microworld.rules import Atoms, Request, State
from verl_steer.roles.tutor import Exchange


@dataclass
class Reading:
    """What a reader makes of a dialogue so far.

    Attributes:
        state: What was heard, and what it is for.
        request: What the last question asked for.
        outcome: What the last reply did, a key of `rules.OUTCOMES`; "" before any.
        forbidden: The rule that forbade what the last question asked for, "" if none.
        side: The object named last, None before any.
    """

    state: State
    request: Request = field(default_factory=lambda: Request("talk"))
    outcome: str = ""
    forbidden: str = ""
    side: int | None = None

    def hear(self, question: str) -> None:
        """A question, which may say "the other one"."""
        self.request = Surface.question(question, self.state.scene, self.side)
        self.side = self.side if self.request.side is None else self.request.side


def read(scene: Scene, history: Sequence[Exchange], reply: Callable[[str], Atoms] = Surface.reply) -> Reading:
    """Reads a whole dialogue; thinking counts as said.

    Args:
        scene: Its picture.
        history: Questions and replies, oldest first.
        reply: The reader of replies.
    """
    reading = Reading(State(scene))
    for exchange in history:
        reading.hear(exchange.question)
        reading.forbidden = reading.state.forbids(reading.request.side, reading.request.words)
        reading.outcome = reading.state.judge(reading.request, reply(exchange.reply))
    return reading


def scene_in(pictures: Iterable[bytes]) -> Scene | None:
    """The first picture's scene, if one of them has one."""
    return next((scene for data in pictures if (scene := scene_of(data)) is not None), None)


def scene_shown(history: Iterable[Exchange]) -> Scene | None:
    """The scene of a conversation's first picture that has one."""
    return scene_in(image.data for exchange in history for image in exchange.images)
