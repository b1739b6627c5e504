"""Do the rules of the selection remove what they are for, and nothing else? And: time and memory of 100,000 rows.

    python benchmarks/filters.py [--quick]

Planted mix (`planted.py`): for each rule, groups of candidates of which exactly that rule should remove exactly one,
among good rows. Precision and recall are taken for each rule; then each rule is turned off, and its planted rows must
come through. Near duplicates: copies edited at random, by their true Jaccard similarity (computed here from plain
sets): recall in each band at and above the threshold, and what is removed below it. Memory and time: candidates with
a small picture each, in a process of their own, beside one pass that only reads and writes such rows. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import planted
from own_process import measure, peak_mib
from planted import Group, Maker

from verl_steer.synthesis.candidate import Candidate
from verl_steer.synthesis.select import select_splits
from verl_steer.synthesis.selection_config import SPLITS, SWITCHES, SelectionConfig
from verl_steer.synthesis.written import as_row, write_split

GOAL, GOAL_NEAR, GOAL_MB = 1.0, 0.99, 1024
BANDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
# A narrower rule's rows are the wider one's too, so they come through only where both are off.
WIDER = {"exact": ("near",), "exact_across": ("near_across",)}


def main() -> int:
    """Measures and prints; exit status 0 if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 groups a rule, 2,000 rows; under a minute")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return child(arguments.run[0], int(arguments.run[1]))
    groups, pairs, sizes = (10, 400, (500, 2000)) if arguments.quick else (100, 4000, (10_000, 100_000))
    rules = planted_mix(groups)
    through = turned_off(groups if arguments.quick else 20)
    near = near_pairs(pairs)
    scale = {f"{what}_{n}": measure(__file__, what, str(n)) for n in sizes for what in ("select", "copy")}
    for name, figures in {"rule": rules, "off": through, "near": near, "scale": scale}.items():
        for key, value in figures.items():
            print(f"{name} {key}: {value}")
    worst = min(min(one["precision"], one["recall"]) for one in rules.values())
    near_recall = min(one["share"] for band, one in near.items() if float(band.split("-")[0]) >= 0.8 and one["pairs"])
    false = sum(one["removed"] for band, one in near.items() if float(band.split("-")[0]) < 0.8)
    peak = max(one["peak_mb"] for one in scale.values())
    ok = worst >= GOAL and near_recall >= GOAL_NEAR and not false and all(through.values()) and peak <= GOAL_MB
    line = {
        "name": "filters",
        "value": worst,
        "unit": "worst precision or recall of a rule on the planted mix",
        "bound": GOAL,
        "ratio": round(worst / GOAL, 3),
        "goal": f"{GOAL}; near recall >= {GOAL_NEAR} in every band from 0.8, none removed below; peak <= {GOAL_MB} MB",
        "ok": ok,
        "details": {"rules": rules, "off_lets_through": through, "near": near, "scale": scale},
    }
    print(json.dumps(line))
    return 0 if ok else 1


def settings(*off: str, **changes: object) -> SelectionConfig:
    """Every candidate is looked at, and each split has its own source."""
    splits = {s: {"size": 10**6, "sources": [f"for_{s}"], "benign": 0, "harmful": 0} for s in SPLITS}
    return SelectionConfig.from_mapping({"allow_short": True, "without": list(off), **splits, **changes})


def fates(rows: list[Candidate], config: SelectionConfig) -> dict[str, dict[str, str]]:
    """Id -> split -> what became of it."""
    with tempfile.TemporaryDirectory() as name:
        select_splits(rows, config, Path(name))
        with (Path(name) / "candidates.csv").open(encoding="utf-8") as file:
            return {line["id"]: {split: line[split] for split in SPLITS} for line in csv.DictReader(file)}


def mix(groups: int, seed: int = 0) -> tuple[list[Group], list[Candidate]]:
    """Groups for every rule, and as many good rows again."""
    maker = Maker(seed)
    made = [maker.plant(rule) for rule in SWITCHES for _ in range(groups)]
    return made, [maker.good(split) for split in SPLITS for _ in range(groups * 5)]


def own(group: Group, found: dict[str, dict[str, str]]) -> list[str]:
    """The fates of a group's rows in the split that the rule is tried on."""
    sources = (f"for_{group.split}", "elsewhere")
    return [found[row.script.id][group.split] for row in group.rows if row.script.source in sources]


def planted_mix(groups: int) -> dict[str, dict[str, float]]:
    """Precision and recall of each rule: a group counts once, and any other row that the rule removes is an error."""
    made, good = mix(groups)
    found = fates([row for group in made for row in group.rows] + good, settings())
    hit = Counter(group.rule for group in made if own(group, found).count(group.rule) == 1)
    # Rows of another source are not candidates of this split at all.
    removed = Counter(
        found[row.script.id][split]
        for row in [row for group in made for row in group.rows] + good
        for split in SPLITS
        if row.script.source in (f"for_{split}", "elsewhere" if split == "sft" else "")
    )
    return {
        rule: {
            "planted": groups,
            "removed": removed[rule],
            "precision": round(hit[rule] / max(1, removed[rule]), 4),
            "recall": round(hit[rule] / groups, 4),
        }
        for rule in SWITCHES
    }


def turned_off(groups: int) -> dict[str, bool]:
    """For each rule: without it every planted row of its own comes through."""
    made, good = mix(groups, 1)
    rows = [row for group in made for row in group.rows] + good
    result = {}
    for rule in SWITCHES:
        # Without `source` all rows would go to the split that picks first, so sft is left alone.
        alone = {s: {"size": 0} for s in ("rl", "bench")} if rule == "source" else {}
        found = fates(rows, settings(rule, *WIDER.get(rule, ()), **alone))
        result[rule] = all(set(own(group, found)) == {"chosen"} for group in made if group.rule == rule)
    return result


def near_pairs(pairs: int) -> dict[str, dict[str, float]]:
    """Pairs of one split, by true similarity: how many lost one row as near (or exact)."""
    maker = Maker(2)
    made: list[tuple[float, Candidate, Candidate]] = []
    for n in range(pairs):
        one = maker.good("sft", turns=6)
        texts = maker.edited(planted.texts_of(one), 0.1 * n / pairs)
        likeness = planted.jaccard(planted.texts_of(one), texts)
        made.append((likeness, one, maker.good("sft", texts, image=one.script.turns[0].images[0])))
    rows = [row for _, *both in made for row in both]
    alone = {s: {"size": 0} for s in ("rl", "bench")}
    found = fates(rows, settings("exact", **alone))
    bands: dict[str, Counter[str]] = defaultdict(Counter)
    for likeness, *both in made:
        low = max((b for b in BANDS if b <= likeness), default=0.0)
        high = next((b for b in BANDS if b > likeness), 1.0)
        band = bands[f"{low}-{high}"]
        band["pairs"] += 1
        band["removed"] += [found[row.script.id]["sft"] for row in both].count("near")
    return {
        name: {
            **bands[name],
            "removed": bands[name]["removed"],
            "share": round(bands[name]["removed"] / bands[name]["pairs"], 4),
        }
        for name in sorted(bands)
    }


def child(what: str, rows: int) -> int:
    """Runs one of them and prints its figures; candidates are made as they are asked for."""
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as name:
        if what == "select":
            shares = {"sft": 0.12934, "rl": 0.02, "bench": 0.03227}
            sizes = {s: {"size": round(rows * share)} for s, share in shares.items()}
            report = select_splits(candidates(rows), SelectionConfig.from_mapping(sizes), Path(name))
            written = sum(split.chosen for split in report.splits)
        else:
            write_split(Path(name) / "x.parquet", "sft", (as_row(c, "sft", n) for n, c in enumerate(candidates(rows))))
            written = rows
    figures = {
        "rows": rows,
        "written": written,
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.perf_counter() - began, 1),
        "peak_mb": round(peak_mib()),
    }
    print(json.dumps(figures))
    return 0


def candidates(rows: int) -> Iterator[Candidate]:
    """As many candidates as in a real build (the paper's 100k pool): three rows a seed."""
    maker = Maker(4)
    for n in range(rows):
        yield maker.good("any", cluster=f"seed-{n // 3}")


if __name__ == "__main__":
    raise SystemExit(main())
