"""STEER rows for verl: scripts in, with an account of every row that cannot be used.

verl's own data set swallows exceptions while filtering and drops rows in silence. Here every row is
read, checked and counted: rows in = rows kept + rows rejected, and each rejected row is named in
`rejected_*.jsonl` with its reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import torch
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_steer.data.check import check_row
from verl_steer.dialogue import MAX_TURNS
from verl_steer.plugin.limits import row_limits
from verl_steer.records import write_jsonl


class SteerDataset(RLHFDataset):
    """Set as `data.custom_cls`.

    Raises:
        ValueError: A row is unusable and `data.on_bad_row` is "error" (the default).
    """

    def maybe_filter_out_long_prompts(self, dataframe: datasets.Dataset | None = None) -> datasets.Dataset:
        """Checks every row, whatever `filter_overlong_prompts` says: a bad row must not fail in mid-run."""
        assert dataframe is not None
        turns, pictures = int(self.config.get("max_turns", MAX_TURNS)), self.config.get("max_pictures", None)
        limits = row_limits(self.tokenizer, self.processor, self.config, turns, pictures)
        kept, rejected = [], []
        for number, row in enumerate(dataframe):
            reason = check_row(row, limits)
            if reason is None:
                kept.append(number)
            else:
                rejected.append({"row": number, "seed_id": _seed_id(row), "reason": reason})
        self._account(len(dataframe), rejected)
        return dataframe.select(kept)

    def _account(self, total: int, rejected: list[dict[str, Any]]) -> None:
        names = ", ".join(Path(f).name for f in self.data_files)
        if rejected and self.config.get("on_bad_row", "error") == "error":
            first = rejected[0]
            raise ValueError(
                f"{names}: {len(rejected)} of {total} rows cannot be used; the first is row {first['row']} "
                f"(seed {first['seed_id']!r}): {first['reason']}. Mend them, or set data.on_bad_row=reject to leave them out."
            )
        directory = self.config.get("rejected_dir", None)
        if directory:
            write_jsonl(Path(directory) / f"rejected_{Path(self.data_files[0]).stem}.jsonl", rejected)
        print(f"{names}: {total} rows in = {total - len(rejected)} kept + {len(rejected)} rejected")

    def __getitem__(self, item: int) -> dict[str, Any]:
        """The row as `data/rows.py` wrote it, pictures still encoded, and verl's bookkeeping."""
        row: dict[str, Any] = dict(self.dataframe[item])
        extra = row.get("extra_info") or {}
        return {
            **row,
            "raw_prompt": row[self.prompt_key],
            "agent_name": row.get("agent_name") or "steer",
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),
            "extra_info": extra,
            "index": extra.get("index", item),
            "tools_kwargs": {},
            "interaction_kwargs": {},
        }


def _seed_id(row: dict[str, Any]) -> str:
    try:
        return str(json.loads(row["steer"])["seed_id"])
    except (KeyError, TypeError, ValueError):
        return ""
