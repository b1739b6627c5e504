"""A run folder: the one place that knows what `verl-steer bench` writes, and how it is read back.

    DIR/run.json              what was run: model, decoding, pictures, mode, bench file, seed, versions (`Run`)
    DIR/dialogues.jsonl       a line a bench row, in the bench file's order (`Played`)
    DIR/images/SHA256.EXT     every picture that was shown, as the encoded bytes that the model got (`pictures.py`)
    DIR/verdicts/JUDGE.jsonl  a line a turn that has a reply (`Judged`)
    DIR/judges.json           who judged, with which prompt, and how it fared on the canaries (`Judge`)

Rows in = rows out: a bench row that cannot be played is a line with status `rejected` or `failed` and a reason.
A verdict that did not come is a line whose outcome is not `ok` and whose scores are null; it is never a low score.
While a command runs its JSON-lines file grows in the order in which things are finished (`lines.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from verl_steer.bench.lines import BenchError, read_lines, whole
from verl_steer.chat.outcome import Outcome
from verl_steer.dialogue import MAX_TURNS, Kind

VERSION: Literal[1] = 1
RUN, DIALOGUES, VERDICTS, JUDGES = "run.json", "dialogues.jsonl", "verdicts", "judges.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=_Line)


class BenchFile(_Line):
    """Which rows: the file, the SHA-256 of its bytes and its number of rows."""

    file: str
    sha256: str
    rows: int = Field(ge=0)


class Run(_Line):
    """What was run; a folder holds one run.

    Attributes:
        name: Of the model in tables.
        model: `kind` endpoint, local or policy, and what identifies it.
        system: System prompt that replaced the rows' own, or null: each row's own.
        decoding: max_tokens, temperature.
        image_preset: A size preset of `data.images`; "keep" shows pictures as they are stored.
        mode: static: scripted questions; adaptive: rewritten after each reply.
        attacker: Who rewrites, where the mode is adaptive.
        seed: Of the model's sampling and the attacker's choices.
        versions: Of the packages that matter.
    """

    version: Literal[1] = VERSION
    name: str = Field(min_length=1)
    model: dict[str, JsonValue]
    system: str | None = None
    decoding: dict[str, JsonValue]
    image_preset: str = "keep"
    mode: Literal["static", "adaptive"] = "static"
    attacker: dict[str, JsonValue] | None = None
    bench: BenchFile
    seed: int = 0
    versions: dict[str, str] = {}


class PlayedTurn(_Line):
    """One exchange.

    Attributes:
        question: What was asked.
        strategy: "script", or the attacker's named move.
        reply: Everything the model wrote; "" where nothing came.
        outcome: ok; refused or blocked where the server or a filter declined: what the user saw stands as reply;
            failed or timeout: there is no reply, and the dialogue ends here.
        finish_reason: As the server named it.
        completion_tokens: As the server counted, 0 if it did not say.
        latency_s: Of the reply; 0 for one that a journal gave again.
    """

    question: str
    strategy: str = "script"
    reply: str = ""
    outcome: Outcome = Outcome.OK
    finish_reason: str = ""
    completion_tokens: int = 0
    latency_s: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether there is a reply to judge; an empty one of a model is one."""
        return self.outcome in (Outcome.OK, Outcome.REFUSED, Outcome.BLOCKED)


class Played(_Line):
    """One dialogue of a run.

    Attributes:
        id: Of the bench row; "row N" (0-based) where a rejected one has none of its own.
        cluster: What dialogues share that are not independent: `meta.cluster`, else `meta.template` × first picture,
            else `meta.pair`, else `meta.source_id`, else `meta.picture`, else `meta.seed_id`, else the first picture,
            else the row's own id.
        pair: `meta.pair` of twins, or null.
        planned_turns: User turns of the script; 0 for a rejected row.
        status: done; failed: the model gave no reply at some turn, or the attacker could not be asked; rejected: the row could not be played.
        why: The reason, "" if done.
        images: SHA-256 of the pictures shown with each planned turn.
        system: System prompt that was used, "" for none.
        turns: As far as the dialogue went.
    """

    id: str
    subset: str = ""
    category: str = ""
    source: str = ""
    kind: Kind | None = None
    cluster: str = ""
    pair: str | None = None
    planned_turns: int = Field(default=0, ge=0, le=MAX_TURNS)
    status: Literal["done", "rejected", "failed"]
    why: str = ""
    images: tuple[tuple[str, ...], ...] = ()
    system: str = ""
    turns: tuple[PlayedTurn, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Played:
        if self.status == "done" and len(self.turns) != self.planned_turns:
            raise ValueError(f"is done with {len(self.turns)} of {self.planned_turns} turns")
        if self.status != "done" and not self.why:
            raise ValueError(f"is {self.status} without a reason in why")
        if self.status != "rejected" and self.kind is None:
            raise ValueError("has no kind")
        return self


class Judged(_Line):
    """A verdict on one reply.

    Attributes:
        id: Of the dialogue.
        turn: 1-based.
        outcome: How the judge's call ended; scores are there if and only if it is ok.
        harmlessness: -3..3 or null.
        helpfulness: 0..3 or null.
        reason: The judge's, or what went wrong.
        calls: Requests it cost.
        latency_s: Seconds it took.
        said: Digest of the conversation that was judged (`judging.said`), or "": not known.
    """

    id: str
    turn: int = Field(ge=1, le=MAX_TURNS)
    outcome: Outcome
    harmlessness: int | None = Field(default=None, ge=-3, le=3)
    helpfulness: int | None = Field(default=None, ge=0, le=3)
    reason: str = ""
    calls: int = 0
    latency_s: float = 0.0
    said: str = ""

    @model_validator(mode="after")
    def _scored_if_ok(self) -> Judged:
        scored = {self.harmlessness is not None, self.helpfulness is not None}
        if scored != {self.outcome is Outcome.OK}:
            raise ValueError(f"an outcome of {self.outcome.value} and its scores disagree")
        return self


class Judge(_Line):
    """Who judged: the model's name, the SHA-256 of its prompt, and the canary report or null if none was made."""

    model: str
    prompt_sha256: str = ""
    canaries: dict[str, JsonValue] | None = None


def check_name(name: str, what: str) -> str:
    """A name that is also a file's.

    Raises:
        BenchError: It holds other signs than letters, digits, dot, dash and underscore.
    """
    if not _NAME.fullmatch(name):
        raise BenchError(f"{what} {name!r}: use 1..100 letters, digits, '.', '_' or '-'; it becomes a file's name")
    return name


def read_run(folder: Path) -> Run:
    """`run.json`.

    Raises:
        BenchError: `folder` holds no run, or a damaged one.
    """
    if not (folder / RUN).is_file():
        raise BenchError(f"{folder} holds no {RUN}: give the folder of a `verl-steer bench run`")
    return _load(folder / RUN, Run)


def write_run(folder: Path, run: Run) -> None:
    """Writes `run.json`."""
    whole(folder / RUN, _json(run.model_dump(mode="json")))


def read_dialogues(folder: Path) -> list[Played]:
    """All dialogues, in the bench file's order once the run is complete; of a row's several lines the last one counts.

    A run that goes on adds a line for each row that had failed or was rejected, and is perhaps stopped before it takes
    the old ones away. A rejected row without an id has a made-up one, which another row may really have.

    Raises:
        BenchError: The file is missing or a line is damaged; it names file and line.
    """
    lines = read_lines(folder / DIALOGUES, Played)
    return list({(line.id, line.status == "rejected"): line for line in lines}.values())


def read_finished(folder: Path) -> tuple[Run, list[Played]]:
    """A run and all its dialogues.

    Raises:
        BenchError: It is not finished, or a file is missing or damaged.
    """
    run, dialogues = read_run(folder), read_dialogues(folder)
    if len(dialogues) < run.bench.rows:
        raise BenchError(
            f"{folder} holds {len(dialogues)} of {run.bench.rows} dialogues: repeat its `bench run` command first"
        )
    return run, dialogues


def judges_of(folder: Path) -> list[str]:
    """The names of the judges that have given verdicts, sorted."""
    return sorted(path.stem for path in (folder / VERDICTS).glob("*.jsonl"))


def read_verdicts(folder: Path, judge: str) -> dict[tuple[str, int], Judged]:
    """A judge's verdicts by (dialogue id, 1-based turn); the last one counts where a turn has several.

    Raises:
        BenchError: The judge has none (the message names who has), or a line is damaged.
    """
    path = folder / VERDICTS / f"{check_name(judge, 'judge')}.jsonl"
    if not path.is_file():
        have = ", ".join(judges_of(folder)) or "nobody has; run `verl-steer bench judge` first"
        raise BenchError(f"{folder}: {judge!r} has given no verdicts; judges that have: {have}")
    return {(line.id, line.turn): line for line in read_lines(path, Judged)}


def read_judges(folder: Path) -> dict[str, Judge]:
    """`judges.json`, {} where nobody has judged yet.

    Raises:
        BenchError: It is damaged.
    """
    path = folder / JUDGES
    if not path.is_file():
        return {}
    try:
        return {name: Judge(**value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BenchError(f"{path} is damaged: {_first(error)}; remove it, `bench judge` writes it again") from error


def write_judges(folder: Path, judges: Mapping[str, Judge]) -> None:
    """Writes `judges.json`."""
    whole(folder / JUDGES, _json({name: judge.model_dump(mode="json") for name, judge in sorted(judges.items())}))


def _load(path: Path, model: type[M]) -> M:
    try:
        return model(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BenchError(f"{path} is damaged or of another version: {_first(error)}") from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}"
    return str(error)


def accounted(dialogues: Sequence[Played]) -> dict[str, int]:
    """Dialogues by status; the three numbers sum to the bench file's rows."""
    return {status: sum(d.status == status for d in dialogues) for status in ("done", "failed", "rejected")}
