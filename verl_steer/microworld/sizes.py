"""How large the embedded world is. Apart from everything that trains, so that asking costs nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

VERSION = 7  # raise it when the same sizes would give another world: old caches are then left alone


@dataclass(frozen=True)
class WarmupConfig:
    """Sizes of the warm-up. The defaults took 285 to 455 s of one core beside a busy one, by seed.

    Attributes:
        pictures: Pictures the vision tower alone is trained on.
        vision_steps: Steps of that stage, batches of `vision_batch` pictures.
        exercises: Dialogues of the language stage.
        base_steps: Most steps of the language stage, batches of about `batch_tokens` tokens.
        remember_share: Share of exercises that ask for charms again and again.
        gate_reading: Share of clear seals read right, and
        gate_recall: of "say" and "again" said right, at which the language stage begins to end.
        lesson_pairs: Twin pairs the expert writes (two dialogues each).
        manner_steps: Steps on exercises and lessons together, batches of `manner_batch` dialogues.
        exercise_share: Share of exercises in the manner stage.
        refusal_rate: How often the student is to refuse what a rule forbids; the expert of the lessons slips as
            often as holds it there.
        vision_lr: Peak learning rate of the first stage (AdamW).
        lr: Peak learning rate of the second (Muon on matrices; the rest by AdamW at a share of it). At twice this the
            look-up in the picture does not form in some seeds until the rate falls.
        manner_lr: The same for the third.
    """

    pictures: int = 2500
    vision_steps: int = 200
    vision_batch: int = 64
    exercises: int = 5000
    base_steps: int = 1500
    remember_share: float = 0.4
    gate_reading: float = 0.97
    gate_recall: float = 0.95
    batch_tokens: int = 2000
    manner_batch: int = 16
    lesson_pairs: int = 300
    manner_steps: int = 300
    exercise_share: float = 0.25
    refusal_rate: float = 0.33
    vision_lr: float = 2e-3
    lr: float = 0.01
    manner_lr: float = 0.005


@dataclass(frozen=True)
class WorldConfig:
    """What `prepare.ensure` builds.

    Attributes:
        rl_pairs: Twin pairs of the RL split.
        probe_pairs: Twin pairs of the validation rows.
        warmup: Sizes of the warm-up.
    """

    rl_pairs: int = 400
    probe_pairs: int = 100
    warmup: WarmupConfig = field(default_factory=WarmupConfig)

    def fingerprint(self) -> str:
        """Eight hex digits that change with every size and with `VERSION`."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
