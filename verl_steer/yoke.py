"""Yoked questions: what a tutor asked in another dialogue of the same seed, whatever is being said in this one.

An adaptive tutor does two things at once: it asks harder questions, and it fits them to the student's replies. A yoked run meets
the questions of a tutored run without the fit, so the two runs differ in adaptivity alone (Bolles and Dews' yoked control; here
over rollouts). The question of turn t is the one that was asked at turn t of the same seed: at the same step, in the next
session; else in any other dialogue that is on record; else the planned one stands.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

from verl_steer.records import RecordError, read_records

#: How a turn's `strategy` names where its question came from; "script" where nothing was found.
SAME_STEP, OTHER_STEP = "yoked", "yoked_other"
Questions = tuple[str, ...]


class Yoke:
    """The questions of a finished run, by seed.

    Args:
        asked: seed id -> (step, session) -> what was asked in turn 1, 2, ….
        planned: seed id -> the script's questions.
    """

    def __init__(self, asked: dict[str, dict[tuple[int, int], Questions]], planned: dict[str, Questions]) -> None:
        self.asked = asked
        self.planned = planned

    @classmethod
    def read(cls, directory: str | Path) -> Yoke:
        """Reads the training records of a run.

        Raises:
            FileNotFoundError: There are none.
            RecordError: One cannot be read.
        """
        asked: dict[str, dict[tuple[int, int], Questions]] = defaultdict(dict)
        planned: dict[str, Questions] = {}
        for record in read_records(directory, "train"):
            try:
                seed_id, place = str(record["seed_id"]), (int(record["step"]), int(record["session"]))
                asked[seed_id][place] = tuple(str(turn["asked"]) for turn in record["turns"])
                planned[seed_id] = tuple(map(str, record["script"]))
            except (KeyError, TypeError, ValueError) as error:
                raise RecordError(f"{directory}: a record lacks {error}; is it of a run of this version?") from error
        if not asked:
            raise FileNotFoundError(f"{directory} holds no records of training (train/step_*.jsonl)")
        return cls(dict(asked), planned)

    def question(self, seed_id: str, step: int, session: int, turn: int) -> tuple[str, str] | None:
        """The question for a turn, and where it comes from.

        Args:
            seed_id: Of the dialogue that is being played.
            step: Training step of it.
            session: Its number among the rollouts of the seed, from 0.
            turn: 0-based; the first turn is the script's own.

        Returns:
            Text and `SAME_STEP` or `OTHER_STEP`; None if no dialogue of the seed got that far.
        """
        dialogues = self.asked.get(seed_id, {})
        siblings = sorted(at for s, at in dialogues if s == step)
        # Sessions are numbered from 0; those that verl dropped are not on record.
        after = next((at for at in siblings if at > session), siblings[0] if siblings else None)
        if after is not None and after != session and len(dialogues[step, after]) > turn:
            return dialogues[step, after][turn], SAME_STEP
        others = sorted(at for at, questions in dialogues.items() if at != (step, session) and len(questions) > turn)
        if not others:
            return None
        key = hashlib.blake2b(f"{seed_id}|{step}|{session}|{turn}".encode(), digest_size=4).digest()
        chosen = others[int.from_bytes(key, "big") % len(others)]
        return dialogues[chosen][turn], OTHER_STEP

    def coverage(self, scripts: dict[str, Questions]) -> tuple[int, list[str]]:
        """How many of these seeds are on record, and the ids whose script is another one there."""
        known = [seed_id for seed_id in scripts if seed_id in self.asked]
        return len(known), [s for s in known if self.planned[s] != scripts[s]]
