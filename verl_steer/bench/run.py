"""`bench run` and `bench judge` without their command line: what is checked, made, asked and written, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from verl_steer.bench import files, judging, rows
from verl_steer.bench.files import Judge, Judged, Played, Run
from verl_steer.bench.inference import Settings, fence_key, play_all
from verl_steer.bench.lines import BenchError, Lines
from verl_steer.chat.client import Chat
from verl_steer.chat.journal import Journal, Journaled, JournalError
from verl_steer.roles.attacker import Attacker, EndpointAttacker
from verl_steer.roles.judge import TurnJudge

JOURNAL = "calls.jsonl"
_PACKAGES = ("verl-steer", "verl", "transformers", "torch")


def versions() -> dict[str, str]:
    """Of the packages that a reply may depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # nothing of it can have been used
    return found


def begin(folder: Path, run: Run) -> None:
    """Makes the run's folder, or checks that it holds this very run.

    Raises:
        BenchError: It holds another run; the message names the first difference.
    """
    if (folder / files.RUN).is_file():
        before = files.read_run(folder)
        for name in Run.model_fields:
            old, new = getattr(before, name), getattr(run, name)
            if name != "versions" and _identity(old, new) != _identity(new, old):
                raise BenchError(
                    f"{folder} holds another run: its {name} is {old!r}, now {new!r}. Name another --out, or repeat "
                    "the old command to go on with it"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    files.write_run(folder, run)


def _identity(value: object, other: object) -> object:
    """What makes a run the one it is: neither where the bench file lies nor where a model is served.

    Args:
        value: Of one run.
        other: Of the other; an older run did not record its weights.
    """
    if isinstance(value, files.BenchFile):
        return value.sha256
    if not isinstance(value, dict):
        return value
    ignored = {"base_urls"} | ({"weights"} if isinstance(other, dict) and "weights" not in other else set())
    return {key: v for key, v in value.items() if key not in ignored}


def play_bench(
    folder: Path,
    run: Run,
    chat: Chat,
    attacker: Callable[[Journal], Attacker] | None,
    concurrency: int,
    deadline_s: float,
    progress: Callable[[Played], None] = lambda played: None,
) -> list[Played]:
    """Plays a bench into a folder; what an interrupted run has been answered is not asked again.

    Args:
        folder: Begun with `begin`.
        run: What is run.
        chat: The model.
        attacker: Journal -> who rewrites the questions (None in a static run).
        concurrency: Dialogues at once.
        deadline_s: Of a call.
        progress: Called with every dialogue as it ends.

    Raises:
        BenchError: Folder, bench file or journal cannot be used.
    """
    path = Path(run.bench.file)
    settings = Settings(
        max_tokens=int(str(run.decoding["max_tokens"])),
        temperature=float(str(run.decoding["temperature"])),
        seed=run.seed,
        system=run.system,
        deadline_s=deadline_s,
        concurrency=concurrency,
        fence_key=fence_key(run.bench),
    )
    lines = Lines(folder / files.DIALOGUES, Played)
    try:
        journal = _journal(folder)
        try:
            rewriter = attacker(journal) if attacker is not None else None
            asked = Journaled(chat, journal, "reply")
            every = rows.items(path, run.image_preset)
            return asyncio.run(_played(every, asked, rewriter, settings, folder, lines, progress))
        except JournalError as error:
            raise BenchError(str(error)) from error
        finally:
            journal.close()
    finally:
        lines.close()


async def _played(
    every: object,
    chat: Chat,
    attacker: Attacker | None,
    settings: Settings,
    folder: Path,
    lines: Lines[Played],
    progress: Callable[[Played], None],
) -> list[Played]:
    try:
        return await play_all(every, chat, attacker, settings, folder, lines, progress)  # type: ignore[arg-type]
    finally:
        await chat.aclose()
        if attacker is not None:
            await attacker.aclose()


def journaled_attacker(chat: Chat) -> Callable[[Journal], Attacker]:
    """A model as attacker whose answers are kept in the run's journal."""
    return lambda journal: EndpointAttacker(Journaled(chat, journal, "attack"))


def judge_bench(
    folder: Path,
    name: str,
    judge: TurnJudge,
    settings: judging.Settings,
    progress: Callable[[Judged], None] = lambda judged: None,
    hidden_state: bool = False,
) -> list[Judged]:
    """Judges a played bench; an `ok` verdict that is there stands.

    Args:
        folder: Of a finished run.
        name: Of the judge's file.
        judge: Who judges.
        settings: See there.
        progress: Called with every verdict, those that were there first.
        hidden_state: The judge reads the scripts' `meta`: the bench file must still be there.

    Raises:
        BenchError: The run is not finished, or the bench file has changed since.
    """
    run, dialogues = files.read_finished(folder)
    scripts = {}
    if hidden_state:
        path = Path(run.bench.file)
        if not path.is_file() or rows.describe(path).sha256 != run.bench.sha256:
            raise BenchError(f"{path} is gone or has changed since the run; this judge reads it")
        scripts = rows.scripts(path)
    lines = Lines(folder / files.VERDICTS / f"{files.check_name(name, '--name')}.jsonl", Judged)
    try:
        return asyncio.run(_judged(dialogues, scripts, judge, settings, folder, lines, progress))
    finally:
        lines.close()


async def _judged(
    dialogues: list[Played],
    scripts: object,
    judge: TurnJudge,
    settings: judging.Settings,
    folder: Path,
    lines: Lines[Judged],
    progress: Callable[[Judged], None],
) -> list[Judged]:
    try:
        return await judging.judge_all(dialogues, scripts, judge, settings, folder, lines, progress)  # type: ignore[arg-type]
    finally:
        await judge.aclose()


def check_judge(folder: Path, name: str, model: str, prompt_sha256: str) -> None:
    """Whether verdicts of this judge may be added to those that stand under a name.

    Raises:
        BenchError: The name belongs to another model or prompt there.
    """
    before = files.read_judges(folder).get(name)
    if before is not None and (before.model, before.prompt_sha256) != (model, prompt_sha256):
        raise BenchError(
            f"{folder}: the verdicts of {name!r} came from {before.model!r} with another prompt or model; "
            "give this judge its own --name"
        )


def note_judge(folder: Path, name: str, judge: Judge) -> None:
    """Writes who judged into `judges.json`; see `check_judge`."""
    check_judge(folder, name, judge.model, judge.prompt_sha256)
    files.write_judges(folder, {**files.read_judges(folder), name: judge})


def _journal(folder: Path) -> Journal:
    try:
        return Journal(folder / JOURNAL)
    except JournalError as error:
        raise BenchError(str(error)) from error
