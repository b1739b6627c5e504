"""The base student of a seed, in a process of its own, since it trains.

    python -m verl_steer.stages.world ROOT SEED SIZES_AS_JSON

It is the embedded world's own: it reads pictures, knows every charm, has heard of the rules, and answers nearly whatever is asked.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_steer.stages.plan import Place
from verl_steer.stages.sizes import Sizes

_WORLD = "verl_steer.microworld"


def world_config(sizes: Sizes) -> Any:
    """The micro-world's configuration with the base student's warm-up.

    Raises:
        TypeError: This world's warm-up has no such size.
    """
    own = importlib.import_module(f"{_WORLD}.sizes")
    return own.WorldConfig(warmup=dataclasses.replace(own.WarmupConfig(), **sizes.warmup))


def prepare(place: Place, sizes: Sizes) -> None:
    """Makes the seed's student if it is not there; it appears whole or not at all."""
    prepared = importlib.import_module(f"{_WORLD}.prepare")
    world = prepared.ensure(place.root / "worlds", place.seed, world_config(sizes), quiet=True)
    place.folder.mkdir(parents=True, exist_ok=True)
    temporary = place.base.with_name(f".base.{os.getpid()}")
    temporary.symlink_to(world.student.resolve(), target_is_directory=True)
    temporary.replace(place.base)


def main(arguments: Sequence[str]) -> None:
    """Entry point of `python -m verl_steer.stages.world`."""
    root, seed, sizes = arguments
    prepare(Place(Path(root), int(seed)), Sizes(**json.loads(sizes)))


if __name__ == "__main__":
    main(sys.argv[1:])
