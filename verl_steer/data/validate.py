"""Is every row of a file what the schemas say, and its pictures what they claim to be; and one row for the eye."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from verl_steer.data.check import image_size
from verl_steer.data.images import ImagePolicy, normalise
from verl_steer.data.rows import RowError
from verl_steer.data.schemas import AnyRow, Exchange, Question, SeedRow
from verl_steer.dialogue import ImageRef

_SHOWN = 1000  # characters of a text on a terminal


def turns_of(row: AnyRow) -> tuple[Question, ...]:
    """The user turns of any row; a seed has one."""
    return (Question(text=row.question, images=row.images),) if isinstance(row, SeedRow) else row.turns


def images_of(row: AnyRow) -> Iterator[ImageRef]:
    """All pictures of a row, in order."""
    for turn in turns_of(row):
        yield from turn.images


def validate(rows: Iterable[AnyRow | RowError]) -> tuple[int, list[tuple[int, str]]]:
    """Checks every row: schema, pictures (header only), ids that come twice.

    Returns:
        How many are good, and (0-based row, reason) of those that are not.
    """
    faults: list[tuple[int, str]] = []
    first: dict[str, int] = {}
    good = 0
    for number, row in enumerate(rows):
        reason = str(row) if isinstance(row, RowError) else _fault(row)
        if not isinstance(row, RowError) and not reason and (other := first.setdefault(row.id, number)) != number:
            reason = f"id {row.id!r} is that of row {other} too"
        if reason:
            faults.append((number, reason))
        else:
            good += 1
    return good, faults


def _fault(row: AnyRow) -> str:
    try:
        for image in images_of(row):
            normalise(image.data, ImagePolicy(as_is=True))
    except RowError as error:
        return f"row {row.id!r}: {error}"
    return ""


def describe(name: str, row: AnyRow) -> str:
    """A row for a terminal: control characters escaped, long texts cut, pictures by size and digest."""
    said = (row.kind.value, row.source, row.category or "no category", row.licence or "no licence")
    lines = [f"{name} row {_plain(row.id)}", f"  {' | '.join(map(_plain, said))}"]
    if system := getattr(row, "system", ""):
        lines.append(f"  system: {_plain(system)}")
    for t, turn in enumerate(turns_of(row), 1):
        for image in turn.images:
            width, height = image_size(image.data, "picture")
            lines.append(f"  {t} [picture {width} x {height}, {len(image.data)} bytes, sha256 {image.sha256[:12]}]")
        lines.append(f"  {t} user: {_plain(turn.text)}")
        if isinstance(turn, Exchange):
            lines.append(f"  {t} assistant: {_plain(turn.reply)}")
    if answer := getattr(row, "answer", None):
        lines.append(f"  answer: {_plain(answer)}")
    return "\n".join([*lines, f"  meta: {_plain(str(row.meta))}"]) + "\n"


def _plain(text: str) -> str:
    cut = text[:_SHOWN] + (f"... ({len(text)} characters)" if len(text) > _SHOWN else "")
    return "".join(c if c.isprintable() else ("\n    " if c == "\n" else repr(c)[1:-1]) for c in cut)
