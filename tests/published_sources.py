"""Every published source in small: its columns, file names and folders, with harmless words and drawn pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@dataclass
class Fixture:
    """Where a source lies, and what is in it.

    Attributes:
        path: What a user would give to `verl-steer data convert`.
        rows: Questions in it, each counted as a row.
        replies: Of them, those with a reply to learn from.
        images: `--images`, where the pictures do not lie beside the table.
    """

    path: Path
    rows: int
    replies: int = 0
    images: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def png(colour: str = "navy", size: tuple[int, int] = (56, 56)) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def parquet(path: Path, rows: list[dict]) -> Path:
    """Writes rows the way the hub does: pictures as {bytes, path}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def image(colour: str = "navy") -> dict:
    """A picture as `datasets` stores it."""
    return {"bytes": png(colour), "path": f"{colour}.png"}


def lines(path: Path, rows: list[Any]) -> Path:
    """JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files(folder: Path, *names: str) -> None:
    """Picture files."""
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            Image.new("RGB", (60, 40), ("red", "green", "blue", "gold")[n % 4]).save(path, format="JPEG")
        else:
            path.write_bytes(png(("red", "green", "blue", "gold")[n % 4]))


def jailbreakv(folder: Path) -> Fixture:
    files(folder, "figstep/a.png", "query_related/b.png")
    with (folder / "JailBreakV_28K.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "jailbreak_query", "redteam_query", "format", "policy", "image_path"])
        writer.writerow(
            [0, "Play a pirate, then\nsay the secret word", "Say the secret word", "Template", "Fraud", "figstep/a.png"]
        )
        writer.writerow([1, "List the steps, please", "Say it", "figstep", "Privacy", "query_related/b.png"])
    (folder / "RedTeam_2K.csv").write_text("id,question\n0,not for us\n")
    return Fixture(folder, 2)


def spa_vl(folder: Path) -> Fixture:
    rows = [
        {
            "image": image(c),
            "question": f"what is wrong with {c}?",
            "chosen": "nothing is",
            "rejected": "all",
            "image_name": c,
        }
        for c in ("red", "blue")
    ]
    parquet(folder / "data" / "train-00000-of-00002.parquet", rows)
    test = {"image": image(), "question": "why?", "class1": "Toxicity Harms", "class2": "Rudeness", "class3": "Insult"}
    parquet(folder / "test" / "harm-00000-of-00001.parquet", [test])
    return Fixture(folder, 3, replies=2)


def beavertails_v(folder: Path) -> Fixture:
    one = [
        {
            "question": f"q{n}",
            "image": image(),
            "category": "insult",
            "image_severity": n,
            "response": f"r{n}",
            "is_response_safe": s,
        }
        for n, s in enumerate(("yes", "no"))
    ]
    parquet(folder / "data" / "insult" / "train.parquet", one)
    return Fixture(folder, 2, replies=1)


def beavertails_v_two(folder: Path) -> Fixture:
    flags = [("no", "yes"), ("no", "no"), ("yes", "yes")]
    two = [
        {"question": f"q{n}", "image": image(), "category": "privacy", "image_severity": 1, "response_1": "first",
         "response_2": "second", "is_response_1_safe": a, "is_response_2_safe": b}
        for n, (a, b) in enumerate(flags)
    ]  # fmt: skip
    parquet(folder / "evaluation.parquet", two)
    return Fixture(folder, 3, replies=2)


def geometry3k(folder: Path) -> Fixture:
    rows = [{"images": [image("red")], "problem": "<image>Find x.", "answer": "3"},
            {"images": [image("red"), image("blue")], "problem": "<image><image>Compare both.", "answer": "\\sqrt 2"}]  # fmt: skip
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    return Fixture(folder, 2, replies=2)


def align_anything(folder: Path) -> Fixture:
    rows = [
        {
            "question": "what is it?",
            "image": image(),
            "response_1": "a wall",
            "response_2": "a blue wall",
            "overall_response": k,
        }
        for k in (1, 2)
    ]
    parquet(folder / "text-image-to-text" / "val_1k.parquet", rows)
    return Fixture(folder, 2, replies=2)


def scienceqa(folder: Path) -> Fixture:
    common = {
        "question": "Which is warmer?",
        "choices": ["ice", "steam"],
        "answer": 1,
        "lecture": "Heat.",
        "topic": "physics",
    }
    rows = [{**common, "image": image(), "hint": "Think of a kettle.", "solution": "Steam comes from boiling."},
            {**common, "image": None, "hint": "", "solution": ""}]  # fmt: skip
    parquet(folder / "data" / "test-00000-of-00001-f0e719df.parquet", rows)
    return Fixture(folder, 2, replies=2)


def vlsbench(folder: Path) -> Fixture:
    files(folder, "imgs/0.png", "imgs/1.png")
    rows = [
        {"instruction_id": str(n), "instruction": "how do I use this?", "image_path": f"imgs/{n}.png", "category": "Violent",
         "sub_category": "Threat", "source": "doc", "image_description": "-", "safety_reason": "-"}
        for n in range(2)
    ]  # fmt: skip
    (folder / "data.json").write_text(json.dumps(rows, indent=2))
    return Fixture(folder, 2)


def mm_safetybench(folder: Path) -> Fixture:
    """The hub's publication."""
    for variant in ("SD", "TYPO"):
        rows = [{"id": str(n), "question": f"q{n}", "image": image()} for n in range(2)]
        parquet(folder / "data" / "01-Illegal_Activitiy" / f"{variant}.parquet", rows)
    parquet(
        folder / "data" / "01-Illegal_Activitiy" / "Text_only.parquet", [{"id": "0", "question": "q0", "image": None}]
    )
    return Fixture(folder, 5)


def mm_safetybench_original(folder: Path) -> Fixture:
    names = ["Question", "Changed Question", "Rephrased Question", "Rephrased Question(SD)", "Key Phrase"]
    questions = {str(n): {name: f"{name} {n}" for name in names} for n in range(2)}
    path = folder / "processed_questions" / "01-Illegal_Activitiy.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(questions))
    variants = [f"01-Illegal_Activitiy/{v}/{n}.jpg" for v in ("SD", "SD_TYPO", "TYPO") for n in range(2)]
    files(folder / "imgs", *variants)
    return Fixture(folder / "processed_questions", 8, images=folder / "imgs")


def vlguard(folder: Path) -> Fixture:
    files(folder / "train", "a.jpg", "b.jpg")
    rows = [
        {"id": "a", "safe": True, "image": "a.jpg", "harmful_category": "deception", "harmful_subcategory": "rumour",
         "instr-resp": [{"safe_instruction": "what do I see?", "response": "a wall"},
                        {"unsafe_instruction": "make up a rumour", "response": "I would rather not"}]},
        {"id": "b", "safe": False, "image": "b.jpg", "harmful_category": "risk", "harmful_subcategory": "politics",
         "instr-resp": [{"instruction": "whom to vote for?", "response": "that is yours to decide"}]},
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps(rows))
    return Fixture(folder, 3, replies=3, images=folder / "train")


def safedialbench(folder: Path) -> Fixture:
    history = [
        {"user": "hello", "bot": "hi"},
        {"user": "and now?", "bot": "now this"},
        {"user": "really?", "bot": "yes"},
    ]
    path = lines(
        folder / "datasets_en.jsonl",
        [{"task": "Ethics", "method": "purpose reverse", "scene": "School", "id": 7, "history": history}],
    )
    return Fixture(path, 1, replies=1)


def cosafe(folder: Path) -> Fixture:
    def talk(*texts: str) -> list[dict]:
        return [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(texts)]

    lines(folder / "privacy.jsonl", [talk("who is he?", "a painter", "where does he live?"), talk("alone", "hm")])
    lines(folder / "crime.jsonl", [talk("a", "b", "c", "d", "e")])
    return Fixture(folder, 3, replies=3)


def reference_rl(folder: Path) -> Fixture:
    files(folder, "images/x.png")
    rows = [
        {"question": [{"role": "user", "content": "<image>look"}], "images": ["images/x.png"], "label": "ok",
         "metadata": {"rest_messages": [{"role": "user", "content": "and then?"}], "question_id": "q-1", "image": "images/x.png"}},
        {"question": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "look again"}], "images": [],
         "label": "", "metadata": {"rest_messages": ["why?", "how?"], "question_id": "q-2"}},
    ]  # fmt: skip
    return Fixture(lines(folder / "rl.jsonl", rows), 2)


def reference_bench(folder: Path) -> Fixture:
    files(folder, "images/x.png")
    messages = [{"role": "user", "content": t} for t in ("one", "two", "three")]
    row = {
        "question_id": 5,
        "image": "images/x.png",
        "messages_fixed": messages,
        "category": "Fraud",
        "risk_trajectory": [1, 2, 3],
    }
    return Fixture(lines(folder / "beaver.jsonl", [row]), 1)


def sharegpt(folder: Path) -> Fixture:
    files(folder, "images/x.png", "images/y.png")
    rows = [
        {"messages": [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "red"},
                      {"role": "user", "content": "and <image>?"}, {"role": "assistant", "content": "green"}],
         "images": ["images/x.png", "images/y.png"]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "images": []},
    ]  # fmt: skip
    path = folder / "dialogues.json"
    path.write_text(json.dumps(rows))
    return Fixture(path, 2, replies=2)


#: Name of the fixture -> (name of the source, builder); some sources were published twice.
FIXTURES: dict[str, tuple[str, Callable[[Path], Fixture]]] = {
    "jailbreakv": ("jailbreakv", jailbreakv),
    "spa_vl": ("spa_vl", spa_vl),
    "beavertails_v": ("beavertails_v", beavertails_v),
    "beavertails_v_two": ("beavertails_v", beavertails_v_two),
    "geometry3k": ("geometry3k", geometry3k),
    "align_anything": ("align_anything", align_anything),
    "scienceqa": ("scienceqa", scienceqa),
    "vlsbench": ("vlsbench", vlsbench),
    "mm_safetybench": ("mm_safetybench", mm_safetybench),
    "mm_safetybench_original": ("mm_safetybench", mm_safetybench_original),
    "vlguard": ("vlguard", vlguard),
    "safedialbench": ("safedialbench", safedialbench),
    "cosafe": ("cosafe", cosafe),
    "reference_rl": ("reference_rl", reference_rl),
    "reference_bench": ("reference_bench", reference_bench),
    "sharegpt": ("sharegpt", sharegpt),
}


def build(name: str, folder: Path) -> Fixture:
    """Writes a fixture below `folder`."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    return FIXTURES[name][1](place)
