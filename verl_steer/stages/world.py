"""The base student and the rows of a seed, from the micro-world's own generator: a process of its own, since it trains.

    python -m verl_steer.stages.world ROOT SEED SIZES_AS_JSON

Base: the world's warm-up without its manner, so the student reads pictures, knows every charm, and answers whatever is asked.
SFT rows: the expert's replies to scripts of the SFT split, so histories never hold a breach. RL rows: scripts of the RL split,
and the same questions each asked alone, for the arm on single-turn data. The bench is one file for all seeds.
Synthesis (`verl-steer synth build`) makes such rows through the served roles; here they come from the same rules directly, in
seconds a seed.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from verl_steer.stages.plan import Place, Sizes
from verl_steer.whole import replacing

#: The bench's scripts: a stream that no training seed shares.
BENCH_SEED = 900_000
_WORLD = "verl_steer.microworld"


def world_config(sizes: Sizes) -> Any:
    """The micro-world's configuration with the base student's warm-up.

    Raises:
        TypeError: This world's warm-up has no such size.
    """
    own = importlib.import_module(f"{_WORLD}.sizes")
    return own.WorldConfig(warmup=dataclasses.replace(own.WarmupConfig(), **sizes.warmup))


def prepare(place: Place, sizes: Sizes) -> None:
    """Makes what is missing of a seed's student and rows; each appears whole or not at all."""
    prepared = importlib.import_module(f"{_WORLD}.prepare")
    world = prepared.ensure(place.root / "worlds", place.seed, world_config(sizes), quiet=True)
    place.rows("rl").parent.mkdir(parents=True, exist_ok=True)
    write_rows(place, sizes)
    temporary = place.base.with_name(f".base.{os.getpid()}")
    temporary.symlink_to(world.student.resolve(), target_is_directory=True)
    temporary.replace(place.base)


def write_rows(place: Place, sizes: Sizes) -> None:
    """The seed's parquet files, and the bench if it is not there yet."""
    generate = importlib.import_module(f"{_WORLD}.scripts").generate
    scripts = generate("rl", place.seed, sizes.rl_pairs)
    importlib.import_module(f"{_WORLD}.lexicon").stable(place.seed, "order of rl rows").shuffle(scripts)
    probe = generate("probe", place.seed, sizes.curve_pairs)
    _write(place.rows("sft"), "sft", sft_rows(generate("sft", place.seed, sizes.sft_pairs)))
    _write(place.rows("rl"), "rl", rl_rows(scripts, "rl"))
    _write(place.rows("single"), "rl", rl_rows(list(alone(scripts)), "single"))
    _write(place.rows("probe"), "rl", rl_rows(probe, "probe"))
    if not place.bench.is_file():
        _write(place.bench, "bench", bench_rows(generate("probe", BENCH_SEED, sizes.bench_pairs)))


def sft_rows(scripts: Sequence[Any]) -> Iterator[Any]:
    """The expert's dialogues over scripts."""
    from verl_steer.data.schemas import Exchange, SftRow

    follow = importlib.import_module(f"{_WORLD}.probe").follow
    expert = importlib.import_module(f"{_WORLD}.policies").expert
    for script in scripts:
        turns = tuple(
            Exchange(text=turn.text, images=turn.images, reply=reply)
            for turn, reply in zip(script.turns, follow(script, expert), strict=True)
        )
        yield SftRow(id=script.seed_id, source=script.source, category=script.category, kind=script.kind, turns=turns)


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
        asks = script.meta.get("turns") or [None] * len(script.turns)
        for number, (turn, ask) in enumerate(zip(script.turns, asks, strict=True), 1):
            question = dataclasses.replace(turn, images=script.turns[0].images)
            yield dataclasses.replace(
                script,
                seed_id=f"{script.seed_id}-turn{number}",
                turns=(question,),
                meta={**script.meta, "turns": [ask]},
            )


def _write(path: Path, layout: str, rows: Iterator[Any]) -> None:
    import pyarrow.parquet as pq

    from verl_steer.data.splits import LAYOUTS, table

    with replacing(path) as temporary:
        pq.write_table(table(LAYOUTS[layout], rows), temporary)


def main(arguments: Sequence[str]) -> None:
    """Entry point of `python -m verl_steer.stages.world`."""
    root, seed, sizes = arguments
    prepare(Place(Path(root), int(seed)), Sizes(**json.loads(sizes)))


if __name__ == "__main__":
    main(sys.argv[1:])
