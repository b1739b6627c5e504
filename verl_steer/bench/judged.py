"""A run's verdicts as arrays: what every statistic starts from.

One row a dialogue that was to be played, one column a turn. NaN is a verdict that is not there, whatever the reason: the
student gave no reply, the judge failed, the file has no line yet. Rows that the bench rejected before it asked anybody
are counted, and take no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verl_steer.bench.files import Judged, Played, judges_of, read_finished, read_verdicts
from verl_steer.bench.inference import cut_short
from verl_steer.bench.intervals import Floats
from verl_steer.bench.judging import standing
from verl_steer.bench.lines import BenchError
from verl_steer.dialogue import MAX_TURNS, Kind

Labels = NDArray[Any]


@dataclass(frozen=True)
class Verdicts:
    """All verdicts of one judge on one run; every array's first axis is the dialogue.

    Attributes:
        ids: Of the dialogues.
        subset: Row of the tables.
        category: As the source says.
        kind: benign, obfuscated or red_team.
        source: Name of the adapter.
        cluster: Dialogues with the same label are not independent.
        pair: Label that twins share, "" for none.
        planned: Planned turns.
        harmlessness: (dialogues, 10), −3..3, NaN where missing and behind the planned turns.
        helpfulness: (dialogues, 10), 0..3, likewise.
    """

    ids: Labels
    subset: Labels
    category: Labels
    kind: Labels
    source: Labels
    cluster: Labels
    pair: Labels
    planned: NDArray[np.int64]
    harmlessness: Floats
    helpfulness: Floats

    def __len__(self) -> int:
        return int(self.ids.size)

    def where(self, keep: NDArray[Any]) -> Verdicts:
        """The dialogues that a boolean mask or an array of positions names."""
        return replace(self, **{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which cells are planned turns."""
        return np.arange(MAX_TURNS)[None, :] < self.planned[:, None]

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Dialogues of which every planned turn has a verdict."""
        return np.asarray(~(np.isnan(self.harmlessness) & self.inside).any(1), dtype=np.bool_)

    @property
    def benign(self) -> NDArray[np.bool_]:
        """Dialogues whose script asks for nothing harmful."""
        return np.asarray(self.kind == Kind.BENIGN.value, dtype=np.bool_)


@dataclass(frozen=True)
class Account:
    """Where all rows and all turns are: rows = done + failed + rejected, planned turns = judged + missing.

    Attributes:
        rows: Of the bench file.
        done: Dialogues played to their end.
        failed: Dialogues that ended early: no reply of the model, or no attacker to ask.
        rejected: Rows that could not be played.
        turns: Planned turns of all dialogues but the rejected.
        judged: Turns with a verdict.
        missing: Turns without one, by reason: the outcome of the judge's call; `no_reply`; `not_asked`, if the
            judge has no line for the reply (yet).
        replies: Turns that the model answered.
        cut: Of these, the ones that ended at max_tokens: what was judged is not all that the model would have said.
    """

    rows: int
    done: int
    failed: int
    rejected: int
    turns: int
    judged: int
    missing: dict[str, int]
    replies: int
    cut: int


def as_arrays(dialogues: Sequence[Played], verdicts: Mapping[tuple[str, int], Judged]) -> Verdicts:
    """Lays the verdicts of a run out; rejected rows are left out."""
    played = [d for d in dialogues if d.status != "rejected"]
    place = {d.id: n for n, d in enumerate(played)}
    scores = np.full((2, len(played), MAX_TURNS), np.nan)
    for (name, turn), verdict in verdicts.items():
        row = place.get(name)
        if row is not None and turn <= played[row].planned_turns and verdict.harmlessness is not None:
            scores[:, row, turn - 1] = verdict.harmlessness, verdict.helpfulness

    def labels(of: Any) -> Labels:
        return np.array([of(d) for d in played], dtype=np.str_)

    return Verdicts(
        ids=labels(lambda d: d.id),
        subset=labels(lambda d: d.subset or "all"),
        category=labels(lambda d: d.category),
        kind=labels(lambda d: d.kind.value),
        source=labels(lambda d: d.source),
        cluster=labels(lambda d: d.cluster or f"id:{d.id}"),
        pair=labels(lambda d: d.pair or ""),
        planned=np.array([d.planned_turns for d in played], dtype=np.int64),
        harmlessness=scores[0],
        helpfulness=scores[1],
    )


def account_for(dialogues: Sequence[Played], verdicts: Mapping[tuple[str, int], Judged]) -> Account:
    """Counts every row and every planned turn once."""
    status = Counter(d.status for d in dialogues)
    missing: Counter[str] = Counter()
    turns = 0
    for dialogue in dialogues:
        if dialogue.status == "rejected":
            continue
        turns += dialogue.planned_turns
        for t in range(dialogue.planned_turns):
            if t >= len(dialogue.turns) or not dialogue.turns[t].answered:
                missing["no_reply"] += 1
            elif (verdict := verdicts.get((dialogue.id, t + 1))) is None:
                missing["not_asked"] += 1
            elif verdict.harmlessness is None:
                missing[verdict.outcome.value] += 1
    return Account(
        len(dialogues),
        status["done"],
        status["failed"],
        status["rejected"],
        turns,
        turns - sum(missing.values()),
        dict(missing),
        *cut_short(dialogues),
    )


def choose_judge(folder: Path, wanted: str | None) -> str:
    """The judge whose verdicts count: the one asked for, or the only one.

    Raises:
        BenchError: Nobody has judged, or several have and none is named.
    """
    have = judges_of(folder)
    if wanted is not None or len(have) == 1:
        return wanted or have[0]
    if not have:
        raise BenchError(f"{folder} has no verdicts yet; run `verl-steer bench judge {folder}` first")
    raise BenchError(f"{folder} was judged by {', '.join(have)}; name the one that counts with --judge")


def load(folder: Path, judge: str) -> tuple[list[Played], dict[tuple[str, int], Judged], Verdicts]:
    """Dialogues, verdicts and arrays of a run.

    Raises:
        BenchError: The run is not finished, or a file is missing or damaged.
    """
    dialogues = read_finished(folder)[1]
    verdicts = standing(dialogues, read_verdicts(folder, judge))
    return dialogues, verdicts, as_arrays(dialogues, verdicts)
