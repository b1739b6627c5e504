"""What an adapter is: a source's facts and one function from a published row to a conversation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_steer.data.conversation import Conversation
from verl_steer.data.images import ImagePolicy, load
from verl_steer.data.published import Published
from verl_steer.data.rows import DataError, RowError
from verl_steer.dialogue import ImageRef, Kind

Record = Mapping[str, Any]


@dataclass(frozen=True)
class At:
    """Where a row lies, and how its pictures are found."""

    source: str
    licence: str
    published: Published
    root: Path
    policy: ImagePolicy

    @property
    def group(self) -> str:
        """The folder or configuration the row's file lies in."""
        return self.published.group

    @property
    def stem(self) -> str:
        """The file's name without its ending and shard number: `train-00000-of-00009.parquet` is `train`."""
        return re.sub(r"-\d{5}-of-\d{5}$", "", Path(self.published.file).stem)

    def id(self, native: Any = None) -> str:
        """Source, file and the row's own id, or its number where it has none; files of one name by their folders."""
        own = self.published.number if native is None else native
        folders = f"{self.published.label}-" if self.published.label else ""
        return f"{self.source}-{folders}{Path(self.published.file).stem}-{own}".replace(" ", "_")

    def pictures(self, value: Any) -> tuple[ImageRef, ...]:
        """Loads one picture, a list of them, or none (null, an empty path)."""
        if value is None or value == "" or (isinstance(value, Mapping) and not any(value.values())):
            return ()
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(load(one, self.root, self.policy) for one in values)

    def conversation(self, native: Any = None, **values: Any) -> Conversation:
        """A conversation of this row; `native` is the row's own id."""
        given = {"id": self.id(native), "source": self.source, "licence": self.licence}
        return Conversation(**{**given, **values})


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        name: As in `verl-steer data convert NAME`.
        title: What it is, in a line.
        hub: Id on the hub, or "" if it is not there.
        licence: As stated by the publisher; "" if none is stated.
        kind: Pool that its rows belong to by default.
        splits: Its splits as published, in words.
        files: Patterns of its tables in a folder.
        layouts: Columns that must be there, one tuple for each form in which it was published.
        pictures: "row" (in the table), "files" (beside it) or "none".
        replies: Some rows have replies, so they can become SFT dialogues.
        convert: Row -> conversation; raises RowError.
        expand: One published row -> the questions it holds, each counted as a row.
        folder_in_id: The rows' own ids say what their folder says, so files of one name need no telling apart.
    """

    name: str
    title: str
    hub: str
    licence: str
    kind: Kind
    splits: str
    files: tuple[str, ...]
    layouts: tuple[tuple[str, ...], ...]
    pictures: str
    replies: bool
    convert: Callable[[Record, At], Conversation] = field(repr=False)
    expand: Callable[[Record], Iterable[Record]] = field(default=lambda record: (record,), repr=False)
    folder_in_id: bool = False

    def check_columns(self, published: Published) -> None:
        """Compares the first row's columns with the layouts.

        Raises:
            DataError: The nearest layout's missing column, what was found, and the nearest name.
        """
        found = list(published.record or {})
        missing = min(([c for c in layout if c not in found] for layout in self.layouts), key=len)
        if missing:
            near = difflib.get_close_matches(missing[0], found, n=1)
            guess = f"; did they rename it to {near[0]!r}?" if near else ""
            raise DataError(
                f"{published.file}: {self.name} needs the column {missing[0]!r}{guess} "
                f"(missing: {', '.join(missing)}; found: {', '.join(found) or 'none'})"
            )


def text(record: Record, column: str) -> str:
    """A column that must hold text.

    Raises:
        RowError: It is absent, null, of another type, or empty.
    """
    value = record.get(column)
    if not isinstance(value, str) or not value.strip():
        shown = "is empty" if isinstance(value, str) else f"holds {type(value).__name__}, not text"
        raise RowError(f"column {column} {shown if column in record else 'is missing in this row'}")
    return value


def optional(record: Record, column: str) -> str:
    """A column that may be absent or null; "" then."""
    value = record.get(column)
    return "" if value is None else str(value).strip()


def yes(value: Any, column: str) -> bool:
    """A yes/no column, published as bool, number or word.

    Raises:
        RowError: It is neither.
    """
    word = str(value).strip().lower()
    if word in ("yes", "true", "1", "1.0", "safe"):
        return True
    if word in ("no", "false", "0", "0.0", "unsafe"):
        return False
    raise RowError(f"column {column} is {value!r}, not yes or no")
