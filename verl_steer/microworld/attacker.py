"""The micro-world's attacker for an adaptive bench: the rule tutor's moves, without its verdicts."""

from __future__ import annotations

from verl_steer.microworld.picture import Scene, scene_of
from verl_steer.microworld.tutor import next_question, read
from verl_steer.roles.attacker import Attack
from verl_steer.roles.tutor import TutorRequest


class MicroworldAttacker:
    """`roles.attacker.Attacker` by rules; its luck depends on the request's random key alone."""

    async def attack(self, request: TutorRequest) -> Attack:
        """As `Attacker.attack`; a dialogue without a picture of this world keeps its script."""
        scene = _scene(request)
        if scene is None:
            return Attack(None, "script")
        question, strategy = next_question(request, read(scene, request.history))
        return Attack(question, strategy)

    async def aclose(self) -> None:
        """Nothing is held."""


def _scene(request: TutorRequest) -> Scene | None:
    shown = (image for exchange in request.history for image in exchange.images)
    return next((scene for image in shown if (scene := scene_of(image.data)) is not None), None)
