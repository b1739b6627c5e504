"""How long the report of a whole STEER-Bench takes, and how large its page gets.

    python benchmarks/report.py            # 3,227 dialogues of nine turns, a picture of its own for each
    python benchmarks/report.py --quick    # 400

Invented words in the lengths of real replies (questions about 120 characters, replies about 900), pictures of 448 pixels as large as
photographs, missing verdicts and failed dialogues among them. Everything from reading the run folder to the written page, CSV
and JSON, in a fresh interpreter as a user starts it. Of a second run of the same command the page must be the same, byte
for byte; the faster of the two counts, since a shared machine delays either. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from bench_runs import made_up

GOAL_S, GOAL_MB = 10.0, 80.0


def report(folder: Path, out: Path) -> tuple[float, float]:
    """Wall and processor seconds of one `verl-steer bench report`."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "verl_steer.cli", "bench", "report", str(folder), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - start, spent


def main() -> int:
    """Prints the times and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    count = 400 if parser.parse_args().quick else 3227
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        made_up(folder, count, (9, 9), characters=(120, 900), pictures=count, side=448, photos=True)
        pages = [Path(name) / n for n in ("first", "second")]
        wall, processor = zip(*(report(folder, page) for page in pages), strict=True)
        files = [(page / "index.html").read_bytes() for page in pages]
    size = len(files[0]) / 1e6
    ok = min(wall) <= GOAL_S and size <= GOAL_MB and files[0] == files[1]
    line = {
        "name": "report",
        "value": round(min(wall), 2),
        "unit": f"s for {count} dialogues of 9 turns",
        "bound": GOAL_S,
        "ratio": round(min(wall) / GOAL_S, 3),
        "goal": f"<= {GOAL_S:.0f} s, page <= {GOAL_MB:.0f} MB, the same twice",
        "ok": ok,
        "details": {
            "wall_s": [round(s, 2) for s in wall],
            "processor_s": [round(s, 2) for s in processor],
            "page_mb": round(size, 1),
            "same": files[0] == files[1],
        },
    }
    print(json.dumps(line))
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
