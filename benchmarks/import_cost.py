"""What the plugin adds to `import verl`, which every process of a job pays.

    python benchmarks/import_cost.py [--quick]

Pairs of fresh interpreters, with and without plugins, in turn; processor seconds (user + system), so that
a busy machine does not disturb the figure. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

GOAL_S = 0.3


def main() -> int:
    """Measures and prints; exit status 0 if the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 pairs instead of 9")
    pairs = 3 if parser.parse_args().quick else 9
    cpu_seconds("auto")  # warms the file cache and writes byte code
    without, with_plugin = [], []
    for _ in range(pairs):
        without.append(cpu_seconds("none"))
        with_plugin.append(cpu_seconds("auto"))
    added = statistics.median(b - a for a, b in zip(without, with_plugin, strict=True))
    base = statistics.median(without)
    line = {
        "name": "import_cost",
        "value": round(added, 3),
        "unit": "processor seconds added to `import verl`",
        "bound": round(base, 3),
        "ratio": round((base + added) / base, 3),
        "goal": f"<= {GOAL_S}",
        "ok": added <= GOAL_S,
        "details": {
            "pairs": pairs,
            "without": [round(x, 3) for x in without],
            "with": [round(x, 3) for x in with_plugin],
        },
    }
    print(json.dumps(line))
    return 0 if line["ok"] else 1


def cpu_seconds(plugins: str) -> float:
    """User + system seconds of one fresh `import verl`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", "import verl"],
        check=True,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"VERL_USE_EXTERNAL_PLUGINS": plugins},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


if __name__ == "__main__":
    raise SystemExit(main())
