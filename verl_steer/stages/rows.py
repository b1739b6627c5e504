"""The rows of a seed: STEER-SFT and STEER-RL by the synthesis pipeline, the probe and the bench by the world's generator.

    python -m verl_steer.stages.rows ROOT SEED SIZES_AS_JSON

`verl-steer synth build` makes the first two from single-turn seeds, every role played by `verl-steer serve microworld` over HTTP. RL
rows are taken apart once more for the arm on single-turn data: the same questions, each asked alone. The bench is not the
pipeline's: it holds what training never sees, and comes in twin pairs; one file serves all seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from verl_steer.stages.plan import Place
from verl_steer.stages.sizes import Sizes
from verl_steer.whole import replacing, write_text

#: The bench's scripts: a stream that no training seed shares.
BENCH_SEED = 900_000
_WORLD, _SYNTH = "verl_steer.microworld", (sys.executable, "-m", "verl_steer.cli", "synth")
_STARTS_WITHIN_S = 120.0
#: Weights of lengths 2..10: those of the world's own scripts.
_TURNS = (0, 5, 5, 4, 2, 1, 1, 0, 0)


def prepare(place: Place, sizes: Sizes) -> None:
    """Makes what is missing of a seed's rows; each file appears whole or not at all.

    Raises:
        subprocess.CalledProcessError: A command of the pipeline failed; its output says why.
    """
    place.rows("rl").parent.mkdir(parents=True, exist_ok=True)
    splits = _synthesise(place, sizes)
    for name in ("sft", "rl"):
        with replacing(place.rows(name)) as temporary:
            shutil.copyfile(splits / f"{name}.parquet", temporary)
    rows = importlib.import_module("verl_steer.data.rows")
    scripts = [rows.row_to_script(row) for row in rows.read_rows(place.rows("rl"))]
    _write(place.rows("single"), "rl", rl_rows(list(alone(scripts)), "single"))
    generate = importlib.import_module(f"{_WORLD}.scripts").generate
    _write(place.rows("probe"), "rl", rl_rows(generate("probe", place.seed, sizes.curve_pairs), "probe"))
    if not place.bench.is_file():
        _write(place.bench, "bench", bench_rows(generate("bench", BENCH_SEED, sizes.bench_pairs)))


def rl_rows(scripts: Sequence[Any], split: str) -> Iterator[Any]:
    """Scripts at their places in a split."""
    from verl_steer.data.schemas import RlRow, script_values

    for index, script in enumerate(scripts):
        yield RlRow(**script_values(script), index=index, split=split)


def bench_rows(scripts: Sequence[Any]) -> Iterator[Any]:
    """Scripts as a bench; a rule is a subset."""
    from verl_steer.data.schemas import BenchRow, script_values

    for script in scripts:
        yield BenchRow(**script_values(script), subset=script.category)


def alone(scripts: Sequence[Any]) -> Iterator[Any]:
    """Every question of every script as a script of its own, with the picture and without the history."""
    for script in scripts:
        for number, turn in enumerate(script.turns, 1):
            question = dataclasses.replace(turn, images=script.turns[0].images)
            yield dataclasses.replace(script, seed_id=f"{script.seed_id}-turn{number}", turns=(question,))


# -- the pipeline ----------------------------------------------------------------------------------------


def build_config(folder: Path, seed: int, sizes: Sizes, url: str) -> dict[str, Any]:
    """The build's YAML (docs/synthesis.md), as data.

    Args:
        folder: Holds the category review.
        seed: Of every choice.
        sizes: How many rows are wanted.
        url: Of the server that plays the roles.
    """
    split = {"min_turns": 3, "mean_turns": None}
    return {
        "seed": seed,
        "sft_share": 0.5,
        "roles": {"all": {"kind": "microworld", "base_urls": url, "concurrency": 32, "timeout_s": 300, "outage_s": 60}},
        "red_team": {"review": str(folder / "review.yaml")},
        "turns": {"sft": _TURNS, "held": _TURNS},
        # A picture that was drawn over has lost its scene, and the tutor of stage III reads the scene.
        "perturb": {"share": 0.0},
        "run": {"rows_in_flight": 64, "shard_rows": 128},
        "selection": {
            "sft": {"size": sizes.sft_dialogues, **split},
            "rl": {
                "size": sizes.rl_scripts,
                # More than the paper's 1 : 3: with it students of development seeds began to refuse benign questions.
                "benign": sizes.rl_benign,
                "harmful": 1 - sizes.rl_benign,
                **split,
            },
            "bench": {"size": 0},
        },
    }


def _synthesise(place: Place, sizes: Sizes) -> Path:
    """The folder of the splits; a build that was stopped goes on."""
    import yaml

    folder = place.folder / "synthesis"
    folder.mkdir(exist_ok=True)
    splits, seeds = folder / "build" / "splits", folder / "seeds.parquet"
    if (splits / "selection.json").is_file():
        return splits
    if not seeds.is_file():
        wanted = ("--count", str(sizes.seeds), "--seed", str(1 + place.seed), "--out", str(seeds))
        subprocess.run([*_SYNTH, "seeds-microworld", *wanted], check=True)
    categories = dict.fromkeys(importlib.import_module(f"{_WORLD}.seeds").CATEGORIES.values(), True)
    review = {"reviewer": "the authors of verl_steer", "date": "2026-11-24", "categories": categories}
    write_text(folder / "review.yaml", yaml.safe_dump(review))
    with _served() as url:
        config = json.loads(json.dumps(build_config(folder, place.seed, sizes, url)))
        write_text(folder / "build.yaml", yaml.safe_dump(config))
        command = ("build", str(folder / "build.yaml"), "--seeds", str(seeds), "--out", str(folder / "build"))
        subprocess.run([*_SYNTH, *command], check=True)
    return splits


@contextlib.contextmanager
def _served() -> Iterator[str]:
    """`verl-steer serve microworld` in a process of its own, on a port that was free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "verl_steer.cli", "serve", "microworld", "--port", str(port)])
    try:
        _wait(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server of the roles ended with status {server.returncode} before it answered")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server of the roles did not answer at {url} within {_STARTS_WITHIN_S:.0f} s")


def _write(path: Path, layout: str, rows: Iterator[Any]) -> None:
    import pyarrow.parquet as pq

    from verl_steer.data.splits import LAYOUTS, table

    with replacing(path) as temporary:
        pq.write_table(table(LAYOUTS[layout], rows), temporary)


def main(arguments: Sequence[str]) -> None:
    """Entry point of `python -m verl_steer.stages.rows`."""
    root, seed, sizes = arguments
    prepare(Place(Path(root), int(seed)), Sizes(**json.loads(sizes)))


if __name__ == "__main__":
    main(sys.argv[1:])
