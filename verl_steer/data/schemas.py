"""The rows of the splits, as pydantic models: what a seed, a script, a dialogue, an RL row and a bench row are.

Version 1. A change that an older reader would misread raises `VERSION`, which every file carries. How the
rows lie in columns is in `splits.py`; pictures are `ImageRef`, encoded bytes with their SHA-256.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from verl_steer.data.rows import RowError
from verl_steer.data.wording import check_characters, check_text
from verl_steer.dialogue import MAX_TURNS, ImageRef, Kind, Script, UserTurn

VERSION = 1
# Fields of a script that `dialogue.Script` has no place for travel in its `meta` under their own names.
IN_META = ("licence", "question", "answer")

Text = Annotated[str, AfterValidator(check_text)]
Words = Annotated[str, AfterValidator(check_characters)]
Pictures = tuple[ImageRef, ...]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(_Model):
    """What the user says in one turn; the pictures come before the text."""

    text: Text
    images: Pictures = ()


class Exchange(Question):
    """A question and the reply to learn from."""

    reply: Text


class _Row(_Model):
    """What every row carries.

    Attributes:
        id: Stable id, unique in its file.
        source: Name of the adapter that brought it, or of the stage that made it.
        licence: As the source states it, "" if it states none.
        category: Harm category or topic in the source's own words, or "".
        kind: The pool: benign, obfuscated or red_team.
        meta: Whatever else the source says, as JSON; never shown to a model. `source_id`, where there is one, names what rows
            have in common that are no independent draws (the published question that they vary); it is unique over
            all sources. Rows without it that show the same picture need none: the picture tells.
    """

    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    licence: Words = ""
    category: Words = ""
    kind: Kind
    meta: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _meta_is_free(self) -> _Row:
        if taken := [name for name in IN_META if name in self.meta]:
            raise ValueError(f"meta may not use the names of fields: {taken}")
        return self

    @model_validator(mode="after")
    def _meta_can_be_written(self) -> _Row:
        """Python's JSON reads NaN and lone surrogates, and no column takes them."""
        try:
            json.dumps(self.meta, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise ValueError(f"meta cannot be written as JSON: {error}") from error
        return self


class SeedRow(_Row):
    """A single-turn seed of stage I: one question about some pictures, perhaps with a reference answer."""

    question: Text
    images: Pictures = ()
    answer: Text | None = None


class ScriptRow(_Row):
    """A seed with its planned user turns.

    Attributes:
        system: System prompt, or "".
        question: The seed's own question where the script was made from one, or "".
        answer: The seed's reference answer, or None.
        turns: 1..10 user turns.
    """

    system: Words = ""
    question: Words = ""
    answer: Text | None = None
    turns: tuple[Question, ...] = Field(min_length=1, max_length=MAX_TURNS)


class SftRow(_Row):
    """A whole dialogue: every user turn has its reply."""

    system: Words = ""
    turns: tuple[Exchange, ...] = Field(min_length=1, max_length=MAX_TURNS)


class RlRow(ScriptRow):
    """A script at its place in a split, as verl trains on it; `rows.py` lays it out in verl's columns."""

    index: int = Field(ge=0)
    split: str = Field(default="rl", min_length=1)


class BenchRow(ScriptRow):
    """A held-out script; `subset` is the row of the result tables that it counts for."""

    subset: str = Field(min_length=1)


AnyRow = SeedRow | ScriptRow | SftRow | RlRow | BenchRow
R = TypeVar("R", bound=_Row)


def build(model: type[R], values: dict[str, Any]) -> R:
    """Validates; the fault in one line.

    Raises:
        RowError: Which field is wrong, how, and in which row.
    """
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        said = str(first["msg"]).removeprefix("Value error, ")
        raise RowError(f"row {values.get('id')!r}: {place.lstrip('.') or 'row'}: {said}") from error


def to_script(row: ScriptRow) -> Script:
    """The form that the agent loop takes."""
    meta = row.meta | {name: value for name in IN_META if (value := getattr(row, name))}
    turns = tuple(UserTurn(turn.text, turn.images) for turn in row.turns)
    return Script(row.id, row.kind, turns, row.category, row.source, row.system, meta)


def script_values(script: Script) -> dict[str, Any]:
    """The fields of a `ScriptRow` out of a script; the inverse of `to_script`."""
    taken = {name: script.meta[name] for name in IN_META if name in script.meta}
    return {
        "id": script.seed_id,
        "source": script.source or "script",
        "category": script.category,
        "kind": script.kind,
        "system": script.system,
        "turns": [{"text": turn.text, "images": turn.images} for turn in script.turns],
        "meta": {key: value for key, value in script.meta.items() if key not in taken},
        **taken,
    }
