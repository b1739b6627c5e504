"""A published source into a split, in a stream: in = out + rejected, always.

Rows are taken in order and written in parts (`parts.py`), so memory is flat, a killed run goes on where it
was, and the same input gives the same bytes. Pictures are decoded in threads (Pillow lets go of the
interpreter), in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

from verl_steer.data.conversation import Conversation, Said, to_row
from verl_steer.data.images import load
from verl_steer.data.options import Options, check
from verl_steer.data.parts import Account, Part, Parts, file_hash
from verl_steer.data.published import Published, files_of, read, read_hub, told_apart
from verl_steer.data.refused import refusal
from verl_steer.data.rows import DataError, MissingPicture, RowError
from verl_steer.data.schemas import VERSION, AnyRow
from verl_steer.data.sources.base import At, Record, Source
from verl_steer.data.splits import LAYOUTS, table
from verl_steer.dialogue import ImageRef

PART_ROWS, PART_BYTES = 2000, 64 * 2**20
_CHUNK = 64  # rows handed to the threads at a time

Progress = Callable[[int, int], None]


def convert(source: Source, options: Options, out: Path, progress: Progress = lambda read, rejected: None) -> Account:
    """Converts a source into one parquet file.

    Args:
        source: The adapter.
        options: See there.
        out: File to write; `OUT.rejected.jsonl` and `OUT.account.json` come beside it.
        progress: Called with the rows read and rejected so far.

    Returns:
        The account; also of an earlier run that did just this (nothing is done again then, unless pictures were missing).

    Raises:
        DataError: Something is wrong as a whole: a missing column, file or picture folder, or an option without effect.
    """
    files = files_of(options.paths, source.files) if options.paths else []
    check(source, options, files)
    parts = Parts(out, _plan(source, options, files))
    if account := parts.finished():
        progress(account.read, account.rejected)
        return account
    layout = LAYOUTS[options.to]
    one = _Convert(source, options)
    records = _records(source, options, files)
    first = next(records, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = parts.open()
    seen = {name for part in done for name in part.ids}
    read_so_far, rejected = sum(p.read for p in done), sum(len(p.rejected) for p in done)
    written = sum(p.written for p in done)
    stream = islice(chain([first] if first else [], records), read_so_far, options.limit or None)
    number = len(done)
    with ThreadPoolExecutor(options.workers) as pool:
        results = _in_order(stream, one, pool if source.pictures != "none" else None)
        for rows, part in _parts(results, options.to, seen, written):
            parts.commit(number, table(layout, rows), part)
            number += 1
            read_so_far, rejected = read_so_far + part.read, rejected + len(part.rejected)
            progress(read_so_far, rejected)
    return parts.join(table(layout, []).schema)


#: Goes up when adapters say something else of the same files: an account of before is then no reason not to convert.
_ADAPTERS = 3


def _plan(source: Source, options: Options, files: list[Path]) -> dict[str, Any]:
    """Everything that the output depends on; a change starts anew."""
    chosen = dataclasses.asdict(options) | {"workers": 0}
    stamps = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    plain = {key: str(value) if isinstance(value, (Path, tuple)) else value for key, value in chosen.items()}
    shown = file_hash(options.image) if options.image and options.image.is_file() else ""
    return {
        "version": VERSION,
        "adapters": _ADAPTERS,
        "source": source.name,
        "options": plain,
        "image": shown,
        "files": stamps,
    }


def _records(source: Source, options: Options, files: list[Path]) -> Iterator[Published]:
    """All rows as published, questions counted one by one; the first one's columns are checked.

    Raises:
        DataError: Nothing to read from, or a column is missing.
    """
    labels: Iterable[str] = [""]
    if files:
        streams: Iterable[Iterator[Published]] = (read(file, options.split) for file in files)
        labels = [""] * len(files) if source.folder_in_id else told_apart(files)
    else:
        name = options.hub or source.hub
        if not name:
            raise DataError(f"{source.name} is not on the hub; give the files as they were downloaded")
        if source.pictures == "files":
            raise DataError(
                f"{source.name} keeps its pictures in files beside the table: download a copy "
                f"(hf download {name} --repo-type dataset --local-dir DIR) and give DIR"
            )
        streams = [read_hub(name, options.config, options.split)]
    for stream, label in zip(streams, labels, strict=True):
        unchecked = True
        for published in stream:
            if published.record is None:
                yield published
                continue
            if unchecked:
                source.check_columns(published)
                unchecked = False
            try:
                for record in source.expand(published.record):
                    yield dataclasses.replace(published, record=dict(record), label=label)
            except RowError as error:
                yield dataclasses.replace(published, record=None, fault=str(error))


class _Convert:
    """One published row into a conversation; called in threads."""

    def __init__(self, source: Source, options: Options) -> None:
        self.source, self.options = source, options
        self.picture: ImageRef | None = None
        if options.image:
            try:
                self.picture = load(options.image.read_bytes(), options.image.parent, options.policy)
            except (OSError, RowError) as error:
                raise DataError(f"--image {options.image}: {error}") from error
        if options.images and not options.images.is_dir():
            raise DataError(f"--images {options.images} is not a folder")

    def __call__(self, published: Published) -> Conversation | RowError:
        if published.record is None:
            return RowError(published.fault)
        try:
            return self._conversation(published, published.record)
        except RowError as error:
            return error
        except KeyError as error:
            return RowError(f"column {error} is missing in this row")

    def _conversation(self, published: Published, record: Record) -> Conversation:
        options = self.options
        root = options.images or published.folder
        at = At(self.source.name, self.source.licence, published, root, options.policy)
        conversation = self.source.convert(record, at)
        changes: dict[str, Any] = {}
        if options.kind:
            changes["kind"] = options.kind
        if options.subset:
            changes["subset"] = options.subset
        if self.picture:
            changes["turns"] = _shown(conversation.turns, self.picture, options.image_turn)
            if not any(said.images for said in conversation.turns):
                # A picture that all rows show ties none of them together (`_Row.meta`).
                changes["meta"] = {"source_id": conversation.id, **conversation.meta}
        if options.last_question:
            said = changes.get("turns", conversation.turns)
            changes["turns"] = [Said(said[-1].text, [image for turn in said for image in turn.images])]
        conversation = dataclasses.replace(conversation, **changes)
        if reason := refusal(conversation):
            raise RowError(reason)
        return conversation


def _shown(turns: Iterable[Said], picture: ImageRef, turn: int) -> list[Said]:
    said = list(turns)
    if turn > len(said):
        raise RowError(f"has {len(said)} user turns, the picture is wanted in turn {turn}")
    said[turn - 1] = dataclasses.replace(said[turn - 1], images=(*said[turn - 1].images, picture))
    return said


def _in_order(
    stream: Iterator[Published], one: _Convert, pool: ThreadPoolExecutor | None
) -> Iterator[tuple[Published, Conversation | RowError]]:
    while chunk := list(islice(stream, _CHUNK)):
        yield from zip(chunk, pool.map(one, chunk) if pool else map(one, chunk), strict=True)


def _parts(
    results: Iterable[tuple[Published, Conversation | RowError]], to: str, seen: set[str], written: int
) -> Iterator[tuple[list[AnyRow], Part]]:
    """Cuts the stream into parts by rows read and by picture bytes, so that a part always fits into memory."""
    rows: list[AnyRow] = []
    part, weight = Part(), 0
    for published, result in results:
        part.read += 1
        try:
            if isinstance(result, RowError):
                raise result
            if result.id in seen:
                raise RowError(f"id {result.id!r} is already taken by an earlier row")
            rows.append(to_row(result, to, written + len(rows)))
            seen.add(result.id)
            part.ids.append(result.id)
            weight += sum(len(image.data) for said in result.turns for image in said.images)
        except RowError as error:
            part.rejected.append({"file": published.file, "row": published.number, "reason": str(error)})
            part.missing += isinstance(error, MissingPicture)
        if part.read >= PART_ROWS or weight >= PART_BYTES:
            part.written = len(rows)
            yield rows, part
            written += len(rows)
            rows, part, weight = [], Part(), 0
    if part.read:
        part.written = len(rows)
        yield rows, part
