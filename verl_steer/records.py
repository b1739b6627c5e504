"""Dialogue records: one JSON line a dialogue, one file a step.

The sampler is the only writer, so a step's file can be written whole and renamed into place. A step
that is played again after a resume replaces its file. Steps beyond the resume point that an earlier
attempt played are no part of this run's history: the first step that an attempt trains on renames their
files to `*.superseded`, which no reader looks at. An attempt that only validates sets nothing aside. Pictures are named by their
SHA-256, not stored. Records hold text written by models: mode 0600, folders 0700.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_steer.config import Reward
from verl_steer.dialogue import Cut, Dialogue, Kind, Script, Turn, UserTurn
from verl_steer.scores import Outcome, TutorScores, Verdict, stayed_safe
from verl_steer.tcsr import ScoredDialogue, score_dialogue
from verl_steer.whole import replacing, writable

Record = dict[str, Any]


class RecordError(ValueError):
    """A record cannot be read; the message names file and line."""


# -- a dialogue as plain data ---------------------------------------------------------------------------


def dialogue_to_dict(dialogue: Dialogue) -> Record:
    """A dialogue with its assessments, JSON-ready; `dialogue_from_dict` reads it back."""
    script = dialogue.script
    return {
        "seed_id": script.seed_id,
        "kind": script.kind.value,
        "category": script.category,
        "source": script.source,
        "script": [turn.text for turn in script.turns],
        "planned_turns": dialogue.planned_turns,
        "cut": dialogue.cut.value if dialogue.cut else None,
        "turns": [_turn_to_dict(turn) for turn in dialogue.turns],
    }


def dialogue_from_dict(data: Record) -> Dialogue:
    """The inverse of `dialogue_to_dict`, but for pictures, of which only the hash is kept.

    Raises:
        RecordError: A field is missing or has a value that cannot be.
    """
    try:
        script = Script(
            seed_id=data["seed_id"],
            kind=Kind(data["kind"]),
            turns=tuple(UserTurn(text) for text in data["script"]),
            category=data.get("category", ""),
            source=data.get("source", ""),
        )
        return Dialogue(
            script=script,
            planned_turns=data["planned_turns"],
            turns=[_turn_from_dict(turn) for turn in data["turns"]],
            cut=Cut(data["cut"]) if data.get("cut") else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"record of seed {data.get('seed_id')!r}: {type(error).__name__}: {error}") from error


def safe_to_end(record: Mapping[str, Any]) -> float | None:
    """`scores.stayed_safe` of a record's dialogue."""
    safety = [turn["scores"]["safety"] if turn.get("scores") else None for turn in record["turns"]]
    return stayed_safe(safety, record["planned_turns"])


def score_to_dict(score: ScoredDialogue) -> Record:
    """A score as plain data."""
    return {
        "return": None if score.masked else score.ret,
        "bounds": list(score.bounds),
        "masked": score.masked,
        "mask_reason": score.mask_reason,
        "scored_fraction": score.scored_fraction,
        "turn_rewards": score.turn_rewards,
        "shaped": score.shaped,
        "placed": score.placed,
    }


def greedy_return(twin: Record, reward: Reward, min_scored: float) -> float | None:
    """What a greedy twin's dialogue (ReMax's baseline) is worth; None if too few of its turns have verdicts.

    Raises:
        RecordError: As `dialogue_from_dict`.
    """
    score = score_dialogue(dialogue_from_dict(twin), reward, min_scored)
    return None if score.masked else score.ret


def build_record(context: Record, dialogue: Record, score: Record | None) -> Record:
    """One record: where it comes from, the dialogue, and what it was worth, turn by turn.

    Args:
        context: step, session, uid, validation, and whatever else identifies the rollout.
        dialogue: From `dialogue_to_dict`.
        score: From `score_to_dict`; None if another reward manager scored.
    """
    per_turn = {"reward": "turn_rewards", "shaped": "shaped", "placed": "placed"}
    turns = [dict(turn) for turn in dialogue["turns"]]
    if score is not None:
        for t, turn in enumerate(turns):
            turn |= {name: score[column][t] for name, column in per_turn.items()}
    whole = {k: v for k, v in (score or {}).items() if k not in per_turn.values()}
    return {**context, **dialogue, **whole, "turns": turns}


def _turn_to_dict(turn: Turn) -> Record:
    verdict = turn.verdict
    scores = verdict.scores if verdict else None
    return {
        "planned": turn.planned.text,
        "asked": turn.asked,
        "images": [image.sha256 for image in turn.planned.images],
        "strategy": turn.strategy,
        "reply": turn.reply,
        "outcome": verdict.outcome.value if verdict else None,
        "scores": {"safety": scores.safety, "usefulness": scores.usefulness, "faithfulness": scores.faithfulness}
        if scores
        else None,
        "reason": verdict.reason if verdict else "",
        "judge": verdict.judge if verdict else "",
        "reply_tokens": turn.reply_tokens,
        "truncated": turn.truncated,
        "latency_s": turn.latency_s,
        "tutor_calls": turn.tutor_calls,
    }


def _turn_from_dict(data: Record) -> Turn:
    verdict = None
    if data["outcome"] is not None:
        scores = TutorScores(**data["scores"]) if data["scores"] else None
        verdict = Verdict(Outcome(data["outcome"]), scores, data.get("reason", ""), data.get("judge", "tutor"))
    return Turn(
        planned=UserTurn(data["planned"]),
        asked=data["asked"],
        reply=data["reply"],
        verdict=verdict,
        strategy=data["strategy"],
        reply_tokens=data["reply_tokens"],
        truncated=data["truncated"],
        latency_s=data["latency_s"],
        tutor_calls=data["tutor_calls"],
    )


# -- files ----------------------------------------------------------------------------------------------


class RecordWriter:
    """Writes `DIR/{train,val}/step_000012.jsonl`."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory).expanduser()
        self._written: dict[str, tuple[Path, list[Record]]] = {}  # by split, its newest step only

    def write_step(self, split: str, step: int, records: Sequence[Record]) -> Path:
        """Writes a step's records, in place of what an earlier attempt left.

        Validation comes in batches: later calls for the same step add to it.
        """
        path = self._directory / split / f"step_{step:06d}.jsonl"
        if split == "train" and split not in self._written:
            self._supersede_from(step)
        newest, so_far = self._written.get(split, (None, []))
        if newest != path:
            so_far = []  # only the step in progress can grow; what is older need not be kept in memory
        so_far = [*so_far, *records]
        write_jsonl(path, so_far)
        self._written[split] = (path, so_far)
        return path

    def _supersede_from(self, step: int) -> None:
        """Sets aside what lies beyond the training of this step: a validation of the same step comes after it."""
        for path in self._directory.glob("*/step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) >= step + (path.parent.name == "train"):
                path.replace(path.with_name(f"{path.name}.superseded"))


def write_jsonl(path: Path, lines: Iterable[Record]) -> None:
    """Writes JSON lines, whole or not at all, mode 0600 in a folder of mode 0700; see `whole.writable` for texts of a model."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(writable(json.dumps(line, ensure_ascii=False, allow_nan=False)) + "\n")


def read_records(directory: str | Path, split: str) -> Iterator[Record]:
    """All records of a split ("train" or "val"), in the order of their steps.

    Raises:
        RecordError: A line is no JSON object; names file and line.
    """
    for _, record in _located(directory, split):
        yield record


def _located(directory: str | Path, split: str) -> Iterator[tuple[str, Record]]:
    """Records with the place they stand in, for messages."""
    for path in sorted((Path(directory).expanduser() / split).glob("step_*.jsonl")):
        with path.open("rb") as file:  # decoded line by line, so that the damaged one can be named
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    record = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise RecordError(f"{where}: no UTF-8: {error}") from error
                except ValueError as error:
                    raise RecordError(f"{where}: no JSON: {error}") from error
                if not isinstance(record, dict):
                    raise RecordError(f"{where}: a record is a JSON object, found {type(record).__name__}")
                yield where, record


def rescore(directory: str | Path, reward: Reward, split: str = "train", min_scored: float = 1.0) -> Iterator[Record]:
    """Scores stored dialogues again, with another reward; nothing is asked of any model.

    A `greedy_return` is scored again in the record that holds the group's twin. The others lose theirs: it is worth
    something by the old settings only.

    Raises:
        RecordError: A record cannot be read; names file and line.
    """
    for where, record in _located(directory, split):
        record.pop("greedy_return", None)
        try:
            score = score_to_dict(score_dialogue(dialogue_from_dict(record), reward, min_scored))
            if "greedy" in record:
                score["greedy_return"] = greedy_return(record["greedy"], reward, min_scored)
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error
        yield build_record({}, record, score)
