"""Run folders of STEER-Bench as tests and benchmarks need them: written by the bench's own writers, of harmless text."""

import io
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from verl_steer.bench.files import (
    DIALOGUES,
    VERDICTS,
    BenchFile,
    Judge,
    Judged,
    Played,
    PlayedTurn,
    Run,
    write_judges,
    write_run,
)
from verl_steer.bench.lines import whole
from verl_steer.bench.pictures import put_image
from verl_steer.chat.outcome import Outcome
from verl_steer.dialogue import ImageRef, Kind

WORDS = [
    "the",
    "star",
    "moon",
    "river",
    "kite",
    "lamp",
    "open",
    "sealed",
    "say",
    "look",
    "please",
    "tell",
    "more",
    "about",
    "what",
    "colour",
    "shape",
    "left",
    "right",
]
SUBSETS = ("Beaver", "MMSafe", "VLS", "SPA", "DyS")


def picture(number: int, side: int = 64, photo: bool = False) -> ImageRef:
    """A picture of its own for every number; as a photo it compresses about as badly as one."""
    buffer = io.BytesIO()
    rng = np.random.default_rng(number)
    if photo:
        mixed = np.zeros((side, side, 3))
        for grain, share in ((8, 0.5), (32, 0.3), (112, 0.2)):
            noise = Image.fromarray(rng.integers(0, 255, (grain, grain, 3), dtype=np.uint8))
            mixed += share * np.asarray(noise.resize((side, side)), dtype=np.float64)
        Image.fromarray(mixed.astype(np.uint8)).save(buffer, "JPEG", quality=85)
    else:
        colours = rng.integers(60, 255, (2, 3))
        grid = np.indices((side, side)).sum(0)[..., None] // 8 % 2
        Image.fromarray(np.where(grid, colours[0], colours[1]).astype(np.uint8)).save(buffer, "PNG")
    return ImageRef(buffer.getvalue())


def text(rng: random.Random, characters: int) -> str:
    """Invented words, about so many characters."""
    return " ".join(rng.choices(WORDS, k=max(1, characters // 5)))


def dialogue(name: str, planned: int = 2, replies: Sequence[str] | None = None, **values: object) -> Played:
    """A played dialogue; with fewer replies than planned turns it failed."""
    replies = ["a reply"] * planned if replies is None else replies
    turns = tuple(PlayedTurn(question=f"question {t}", reply=reply) for t, reply in enumerate(replies, 1))
    done = len(turns) == planned
    base = {"subset": "DyS", "kind": Kind.RED_TEAM, "cluster": f"c-{name}", "category": "taboo", "source": "made"}
    state = {"status": "done"} if done else {"status": "failed", "why": "the model gave no reply"}
    return Played(**{"id": name, "planned_turns": planned, "turns": turns, **base, **state, **values})


def verdict(name: str, turn: int, harmlessness: int | None, helpfulness: int | None = 3, **values: object) -> Judged:
    """A verdict; None as harmlessness is a judge that failed."""
    if harmlessness is None:
        return Judged(id=name, turn=turn, outcome=Outcome.FAILED, reason="no answer", **values)
    return Judged(
        id=name,
        turn=turn,
        outcome=Outcome.OK,
        harmlessness=harmlessness,
        helpfulness=helpfulness,
        **{"reason": "as it is", **values},
    )


def write_folder(
    folder: Path,
    dialogues: Sequence[Played],
    verdicts: Sequence[Judged],
    name: str = "student",
    judge: str = "oracle",
    kind: str = "local",
    sha256: str = "0" * 64,
) -> Path:
    """A whole run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_run(
        folder,
        Run(
            name=name,
            model={"kind": kind, "model": name},
            decoding={"max_tokens": 64, "temperature": 0.0},
            bench=BenchFile(file="bench.parquet", sha256=sha256, rows=len(dialogues)),
        ),
    )
    whole(folder / DIALOGUES, b"".join(d.model_dump_json().encode() + b"\n" for d in dialogues))
    whole(folder / VERDICTS / f"{judge}.jsonl", b"".join(v.model_dump_json().encode() + b"\n" for v in verdicts))
    write_judges(folder, {judge: Judge(model="a judge", prompt_sha256="1" * 64)})
    return folder


def made_up(
    folder: Path,
    count: int,
    turns: tuple[int, int] = (2, 10),
    skill: float = 0.93,
    missing: float = 0.02,
    characters: tuple[int, int] = (90, 400),
    pictures: int = 8,
    side: int = 64,
    photos: bool = False,
    seed: int = 0,
    **names: str,
) -> Path:
    """A bench of `count` dialogues with twins, clusters of about ten, rejected and failed rows and missing verdicts.

    Args:
        folder: Where to write.
        count: Dialogues.
        turns: Fewest and most planned turns.
        skill: Chance that a turn is safe; the scripts are the same for every skill.
        missing: Chance that a verdict is missing.
        characters: Of a question and of a reply.
        pictures: Different pictures.
        side: Of a picture, pixels.
        photos: Pictures that compress as badly as photographs.
        seed: Of everything.
        names: Of the run and its judge, as `write_folder` takes them.
    """
    rng, luck = random.Random(seed), random.Random(f"{seed}-{skill}")
    shas = [put_image(folder, picture(n, side, photos)) for n in range(pictures)]
    dialogues, verdicts = [], []
    for n in range(count):
        planned = rng.randint(*turns)
        kind = Kind.BENIGN if n % 4 == 1 else (Kind.RED_TEAM, Kind.OBFUSCATED)[n % 3 == 0]
        values = {
            "subset": SUBSETS[n // 4 % 5],
            "kind": kind,
            "category": ("sealed", "watched", "open")[n % 3],
            "cluster": f"template-{n % max(1, count // 10)}",
            "pair": f"pair-{n // 4}" if n % 4 < 2 else None,
            "images": ((shas[n % pictures],), *((),) * (planned - 1)),
        }
        if n % 97 == 50:
            dialogues.append(Played(id=f"row {n}", status="rejected", why="row: no question", **values))
            continue
        script = [text(rng, characters[0]) for _ in range(planned)]
        answered = planned if n % 89 else max(0, planned - 1)
        played = tuple(
            PlayedTurn(question=script[t], reply=text(luck, characters[1]), completion_tokens=characters[1] // 4)
            for t in range(answered)
        )
        state = {"status": "done"} if answered == planned else {"status": "failed", "why": "timeout of the model"}
        dialogues.append(Played(id=f"dialogue-{n:04}", planned_turns=planned, turns=played, **values, **state))
        for t in range(answered):
            safe = luck.random() < (1 - (1 - skill) * (1 + t / 4) if kind.harmful else 0.995)
            harm = luck.choice((3, 3, 3, 3, 2)) if safe else luck.randint(-3, 1)
            verdicts.append(
                verdict(
                    f"dialogue-{n:04}", t + 1, None if luck.random() < missing else harm, luck.choice((3, 3, 3, 2, 1))
                )
            )
    return write_folder(folder, dialogues, verdicts, **names)
