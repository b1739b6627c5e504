"""What a conversion depends on besides its source, and what cannot be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verl_steer.data.images import ImagePolicy
from verl_steer.data.published import is_saved_dict
from verl_steer.data.rows import DataError
from verl_steer.data.sources.base import Source
from verl_steer.dialogue import Kind

_NAMED = 5  # files in a message


@dataclass(frozen=True)
class Options:
    """What a conversion depends on besides its source.

    Attributes:
        to: Split: seed, script, rl, sft or bench.
        paths: Local files or folders; empty: from the hub.
        hub: Data set id, if not the source's own.
        config: Hub configuration.
        split: Split on the hub or in a saved DatasetDict.
        images: Folder that relative picture paths begin in; None: beside the table.
        policy: Limits and form of pictures.
        image: A picture shown in every dialogue, for sources that have none.
        image_turn: 1-based turn that shows it.
        kind, subset: Replace what the adapter says.
        last_question: Keep the last user question alone, with all pictures: a seed out of a conversation.
        limit: Stops after so many rows; 0: all.
        workers: Threads that decode pictures.
    """

    to: str
    paths: tuple[Path, ...] = ()
    hub: str = ""
    config: str = ""
    split: str = ""
    images: Path | None = None
    policy: ImagePolicy = field(default_factory=ImagePolicy)
    image: Path | None = None
    image_turn: int = 1
    kind: Kind | None = None
    subset: str = ""
    last_question: bool = False
    limit: int = 0
    workers: int = 2


def check(source: Source, options: Options, files: Sequence[Path]) -> None:
    """Says what would be ignored, or would reject every row, before anything is read.

    Args:
        source: The adapter.
        options: As given.
        files: The tables among `options.paths`.

    Raises:
        DataError: Which option, and what to do instead.
    """
    if options.to == "sft" and not source.replies:
        raise DataError(f"{source.name} has no replies to learn from; convert it to seed, script, rl or bench")
    if options.to == "sft" and options.last_question:
        raise DataError(
            "--last-question keeps one question and none of the replies, so an sft row would have nothing to learn "
            "from; leave it out, or convert to seed, script, rl or bench"
        )
    for name, least in (("image_turn", 1), ("limit", 0), ("workers", 1)):
        if (value := getattr(options, name)) < least:
            raise DataError(f"--{name.replace('_', '-')} {value}: give {least} or more")
    if files:
        _check_local(options, files)


def _check_local(options: Options, files: Sequence[Path]) -> None:
    """A file has no configuration and no split: `--split train` beside a folder would take the test files, too."""
    for name in ("hub", "config"):
        if value := getattr(options, name):
            raise DataError(f"--{name} {value} chooses on the hub, and files were given; {_wanted(files)}")
    if options.split and (whole := [file for file in files if not is_saved_dict(file)]):
        raise DataError(
            f"--split {options.split} chooses within a saved DatasetDict, and {whole[0]} is none; {_wanted(files)}"
        )


def _wanted(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"leave it out and name the files that are wanted (found: {', '.join(map(str, files[:_NAMED]))}{more})"
