"""Rows validated and written per second and core, and memory that does not grow: `verl-steer data convert`.

    python benchmarks/data.py [--quick]

Text: CoSafe-like dialogues (JSONL) into RL rows. Pictures: SPA-VL-like rows with small pictures (parquet) into
SFT rows. The same rows go through plain `datasets.map` + `to_parquet` (same columns, same decoding and
encoding, no checks, no account), each in a process of its own; processor seconds, so that a busy machine does
not disturb the figure. Peak memory is read at 10,000 rows and at the end. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
import time
from pathlib import Path

from own_process import measure, peak_mib

GOAL_ROWS, GOAL_MB, GOAL_GROWTH, MARK = 2000, 1024, 1.2, 10_000


def main() -> int:
    """Measures and prints; exit status 0 if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="10,000 text rows and 12,000 with pictures; under a minute"
    )
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return child(arguments.run[0], Path(arguments.run[1]))
    texts, pictures, peers = (10_000, 12_000, 2_000) if arguments.quick else (50_000, 100_000, 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "texts.jsonl", texts)
        write_pictures(folder / "train.parquet", pictures)
        write_pictures(folder / "peer.parquet", peers)
        found = {
            what: measure(__file__, what, str(folder)) for what in ("texts", "texts_peer", "pictures", "pictures_peer")
        }
    for what, figures in found.items():
        print(f"{what}: {figures}")
    ours, peer, memory = found["texts"], found["texts_peer"], found["pictures"]
    growth = memory["peak_mb"] / memory["peak_mb_at_mark"]
    ok = ours["rows_per_s"] >= GOAL_ROWS and memory["peak_mb"] <= GOAL_MB and growth <= GOAL_GROWTH
    line = {
        "name": "data",
        "value": ours["rows_per_s"],
        "unit": "text rows validated and written per processor second",
        "bound": peer["rows_per_s"],
        "ratio": round(ours["rows_per_s"] / peer["rows_per_s"], 3),
        "goal": f">= {GOAL_ROWS}; with pictures <= {GOAL_MB} MB and <= {GOAL_GROWTH} x the peak at {MARK} rows",
        "ok": ok,
        "details": {"growth": round(growth, 3), **found},
    }
    print(json.dumps(line))
    return 0 if ok else 1


def child(what: str, folder: Path) -> int:
    """Runs one conversion and prints its figures."""
    work = {"texts": texts, "texts_peer": texts_peer, "pictures": pictures, "pictures_peer": pictures_peer}[what]
    began, cpu = time.perf_counter(), time.process_time()
    rows, at_mark = work(folder)
    cpu = time.process_time() - cpu
    figures = {
        "rows": rows,
        "rows_per_s": round(rows / cpu),
        "wall_s": round(time.perf_counter() - began, 1),
        "peak_mb": round(peak_mib()),
        "peak_mb_at_mark": round(at_mark or peak_mib()),
    }
    print(json.dumps(figures))
    return 0


def ours(source: str, to: str, path: Path) -> tuple[int, float]:
    """A conversion; rows, and the peak when `MARK` rows were read."""
    from verl_steer.data import sources
    from verl_steer.data.convert import convert
    from verl_steer.data.options import Options

    at_mark: list[float] = []

    def progress(read: int, rejected: int) -> None:
        if read >= MARK and not at_mark:
            at_mark.append(peak_mib())

    account = convert(sources.get(source), Options(to=to, paths=(path,)), path.with_suffix(f".{to}.parquet"), progress)
    if account.rejected:
        raise RuntimeError(f"{account.rejected} rows rejected, see {account.rejected_path}")
    return account.written, at_mark[0] if at_mark else 0.0


def texts(folder: Path) -> tuple[int, float]:
    """Our text rows."""
    return ours("cosafe", "rl", folder / "texts.jsonl")


def pictures(folder: Path) -> tuple[int, float]:
    """Our rows with pictures."""
    return ours("spa_vl", "sft", folder / "train.parquet")


def texts_peer(folder: Path) -> tuple[int, float]:
    """The same columns by `datasets.map`, nothing checked."""
    import datasets

    lines = [json.loads(line) for line in (folder / "texts.jsonl").open(encoding="utf-8")]
    data = datasets.Dataset.from_dict({"messages": lines})

    def to_row(row: dict, index: int) -> dict:
        turns = [m["content"] for m in row["messages"] if m["role"] == "user"]
        plan = {"seed_id": f"x-{index}", "kind": "obfuscated", "turns": [{"text": t, "images": 0} for t in turns]}
        return {
            "data_source": "verl_steer/x",
            "agent_name": "steer",
            "prompt": [{"role": "user", "content": turns[0]}],
            "ability": "alignment",
            "reward_model": {"style": "tutor", "ground_truth": ""},
            "extra_info": {"index": index, "split": "rl"},
            "steer": json.dumps(plan),
        }

    out = data.map(to_row, with_indices=True, remove_columns=["messages"])
    out.to_parquet(str(folder / "texts.peer.parquet"))
    return len(out), 0.0


def pictures_peer(folder: Path) -> tuple[int, float]:
    """Decode, RGB, encode and lay out by `datasets.map`, nothing checked."""
    import datasets
    from PIL import Image

    cache = str(folder / "cache")
    data = datasets.load_dataset("parquet", data_files=str(folder / "peer.parquet"), split="train", cache_dir=cache)

    def to_row(row: dict) -> dict:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").save(buffer, format="PNG")
        question, reply = {"role": "user", "content": "<image>" + row["question"]}, row["chosen"]
        messages = [question, {"role": "assistant", "content": reply}]
        return {"messages": messages, "images": [{"bytes": buffer.getvalue()}]}

    out = data.map(to_row, remove_columns=data.column_names)
    out.to_parquet(str(folder / "pictures.peer.parquet"))
    return len(out), 0.0


def write_texts(path: Path, rows: int) -> None:
    """Three questions and two replies a line, as in CoSafe."""
    draw = random.Random(0)
    words = [f"word{n}" for n in range(500)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            said = [" ".join(draw.choices(words, k=25)) for _ in range(5)]
            file.write(
                json.dumps([{"role": ("user", "assistant")[n % 2], "content": s} for n, s in enumerate(said)]) + "\n"
            )


def write_pictures(path: Path, rows: int) -> None:
    """SPA-VL's columns with one of 64 small pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    drawn = []
    for n in range(64):
        buffer = io.BytesIO()
        Image.effect_noise((56, 56), 20 + n).convert("RGB").save(buffer, format="PNG")
        drawn.append(buffer.getvalue())
    writer = None
    for start in range(0, rows, 1000):
        numbers = range(start, min(start + 1000, rows))
        table = pa.table(
            {
                "image": [{"bytes": drawn[n % 64], "path": f"{n}.png"} for n in numbers],
                "question": [f"what is in picture {n}?" for n in numbers],
                "chosen": [f"noise number {n}" for n in numbers],
                "rejected": ["nothing"] * len(numbers),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


if __name__ == "__main__":
    raise SystemExit(main())
