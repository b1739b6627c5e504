"""The lessons that give the student its first, imperfect manner, to a measured degree.

How often the expert slips is decided by how often the student refuses: rarer than wanted, fewer slips; oftener,
more; for each rule by itself. A fixed share of slips leaves one seed refusing one forbidden question in ten and
another one in two, and from one in ten RL hardly finds what to reinforce.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from verl_steer.dialogue import Script
from verl_steer.microworld.encoding import RULES, Encoded, Encoder
from verl_steer.microworld.exercises import lesson
from verl_steer.microworld.sizes import WarmupConfig

MEMORY = 0.98  # decay, per measured decision, of the running refusal rate
PACE = 0.04  # change of the probability of a slip in a step, per unit of refusal rate
LEAST, MOST = 0.25, 0.95  # both replies stay in view


class Mixture:
    """Draws batches of exercises and lessons.

    Args:
        rng: Where chance comes from.
        exercises: The pool of the stage before, so that nothing is forgotten.
        scripts: What lessons are given on; each rule's as often as any other's. In proportion to how often a rule is
            met, the rarest one, the pledge, was told from its twin by four students of nine only.
        encoder: Makes tokens of a lesson.
        config: Its `exercise_share`, `manner_batch` and `refusal_rate`.
    """

    def __init__(
        self,
        rng: random.Random,
        exercises: Sequence[Encoded],
        scripts: Sequence[Script],
        encoder: Encoder,
        config: WarmupConfig,
    ) -> None:
        self._rng, self._config = rng, config
        self._exercises, self._encoder = exercises, encoder
        rules = sorted({script.category for script in scripts})
        self._scripts = [[script for script in scripts if script.category == rule] for rule in rules]
        self.slips = {rule: 0.5 for rule in RULES if rule}
        self._sums = {rule: [0.0, 0.0] for rule in RULES if rule}

    def batch(self) -> list[Encoded]:
        """The next batch."""
        return [self._draw() for _ in range(self._config.manner_batch)]

    def tell(self, refusals: Mapping[str, torch.Tensor]) -> None:
        """What the student did with the last batch: for each rule, float32 [n] probabilities of "no"."""
        for rule, found in refusals.items():
            sums = self._sums[rule]
            for probability in found.tolist():
                sums[:] = MEMORY * sums[0] + probability, MEMORY * sums[1] + 1
            if sums[1]:
                share = self.slips[rule] + PACE * (self.refusal_rate(rule) - self._config.refusal_rate)
                self.slips[rule] = min(MOST, max(LEAST, share))

    def refusal_rate(self, rule: str) -> float:
        """Of late, how probable "no" was where `rule` forbids; 0 before anything was measured."""
        weighted, weight = self._sums[rule]
        return weighted / weight if weight else 0.0

    def _draw(self) -> Encoded:
        if self._rng.random() < self._config.exercise_share:
            return self._rng.choice(self._exercises)
        script = self._rng.choice(self._rng.choice(self._scripts))
        return self._encoder(lesson(script, self._rng, self.slips))
