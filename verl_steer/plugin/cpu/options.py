"""`actor_rollout_ref.rollout.engine_kwargs.hf`: the options of the transformers rollout."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class EngineOptions:
    """Options of one rollout server.

    Attributes:
        slots: Sequences held at once: those being decoded and those kept for their prefix. Memory
            grows as slots x tokens x layers; `rollout.max_num_seqs` is an upper bound.
        threads: Threads of torch; 0: OMP_NUM_THREADS if set, else every core that the process may use.
    """

    slots: int = 64
    threads: int = 0

    @classmethod
    def read(cls, engine_kwargs: Mapping[str, Any] | None) -> EngineOptions:
        """Reads `engine_kwargs.hf`, absent or null meaning the defaults.

        Raises:
            ValueError: An unknown name, or a number out of range.
        """
        where = "actor_rollout_ref.rollout.engine_kwargs.hf"
        given = dict((engine_kwargs or {}).get("hf") or {})
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
                raise ValueError(f"{where}.{name}: unknown{hint}")
        options = cls(**{name: int(value) for name, value in given.items() if value is not None})
        if options.slots < 1 or options.threads < 0:
            raise ValueError(f"{where}: slots={options.slots} must be at least 1, threads={options.threads} at least 0")
        if options.threads:
            return options
        return cls(options.slots, int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
