"""STEER-SFT rows for verl's SFT trainer: every row accounted for, in an order that the run's seed decides.

verl's own data set raises in mid-epoch at a row that is too long, and its collator reads `multi_modal_inputs` from the
first row of a batch, so a batch whose first dialogue shows no picture while another does ends in a KeyError
(verl/utils/dataset/dataset_utils.py:70; patches/sft-image-less-first-row.patch, harmless beside this answer).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from verl_steer.data.check import image_size
from verl_steer.data.rows import DataError, RowError
from verl_steer.data.schemas import SftRow
from verl_steer.data.splits import layout_of, read_split
from verl_steer.plugin.limits import image_tokens
from verl_steer.records import write_jsonl


class SteerSftDataset(MultiTurnSFTDataset):
    """Set as `data.custom_cls` of an SFT run.

    Raises:
        ValueError: A row is unusable and `data.on_bad_row` is "error" (the default), or none is left.
    """

    def __init__(
        self, parquet_files: Any, tokenizer: Any, config: Any, processor: Any = None, max_samples: int = -1
    ) -> None:
        self._options = config
        super().__init__(parquet_files, tokenizer, config, processor, max_samples)

    def _read_files_and_process(self) -> None:
        wanted, self.max_samples = self.max_samples, -1  # verl would cut before anything is checked
        super()._read_files_and_process()
        self.max_samples = wanted
        total = len(self.dataframe)
        names = ", ".join(Path(str(f)).name for f in self.parquet_files)
        rejected = unusable([Path(str(f)) for f in self.parquet_files], self.tokenizer, self.processor, self.max_length)
        if rejected and self._options.get("on_bad_row", "error") == "error":
            raise ValueError(refusal(names, total, rejected))
        directory = self._options.get("rejected_dir", None)
        if rejected and directory:
            stem = Path(str(self.parquet_files[0])).stem
            write_jsonl(Path(directory).expanduser() / f"rejected_{stem}.jsonl", rejected)
        kept = np.setdiff1d(np.arange(total), [fault["row"] for fault in rejected])
        if not kept.size:
            raise ValueError(f"{names}: none of the {total} rows can be used; the first: {rejected[0]['reason']}")
        # verl's sampler shuffles with a seed that is 0 in every run; the order that it shuffles is this run's own.
        order = np.random.default_rng(int(self._options.get("seed") or 0)).permutation(kept)
        order = order[:wanted].tolist() if wanted > 0 else order.tolist()
        self.dataframe = self.dataframe.iloc[order]
        self.messages = [self.messages[n] for n in order]
        print(f"{names}: {total} rows in = {kept.size} kept + {len(rejected)} rejected; {len(order)} are used")

    def __getitem__(self, item: int) -> dict[str, Any]:
        """As verl's, with an entry for pictures in every row of a student that sees."""
        row: dict[str, Any] = super().__getitem__(item)
        if self.processor is not None:
            row.setdefault("multi_modal_inputs", {})
        return row


def unusable(files: Iterable[Path], tokenizer: Any, processor: Any, max_length: int) -> list[dict[str, Any]]:
    """Every row that cannot be trained on: its place over all files, its id, the reason.

    Raises:
        DataError: A file is no sft split.
    """
    template = processor if processor is not None else tokenizer
    found = []
    for number, row in enumerate(_rows(files)):
        try:
            if isinstance(row, RowError):
                raise row
            length = _tokens(row, template, tokenizer, processor)
            if length > max_length:
                raise RowError(
                    f"row {row.id!r}: the dialogue has {length} tokens, data.max_length={max_length}; raise it, or "
                    "shorten the dialogue (verl would stop at it in mid-epoch)"
                )
        except RowError as error:
            found.append({"row": number, "id": getattr(row, "id", ""), "reason": str(error)})
    return found


def refusal(names: str, total: int, rejected: list[dict[str, Any]]) -> str:
    """What is wrong with a split, in one sentence."""
    first = rejected[0]
    return (
        f"{names}: {len(rejected)} of {total} rows cannot be used; the first is row {first['row']}: {first['reason']}. "
        "Mend them, or set data.on_bad_row=reject to leave them out"
    )


def _rows(files: Iterable[Path]) -> Iterator[SftRow | RowError]:
    for path in files:
        layout = layout_of(path)
        if layout.name != "sft":
            raise DataError(f"{path} is a {layout.name} split, an sft one is needed (verl-steer data convert --to sft)")
        yield from read_split(path, layout)  # type: ignore[misc]


def _tokens(row: SftRow, template: Any, tokenizer: Any, processor: Any) -> int:
    """Tokens of the dialogue as verl will lay it out: its template's, one placeholder a picture standing for all of its own."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": row.system}] if row.system else []
    pictures = 0
    for number, turn in enumerate(row.turns, 1):
        shown = [{"type": "image"}] * len(turn.images)
        for image in turn.images:
            size = image_size(image.data, f"row {row.id!r}: turn {number}: picture")
            pictures += image_tokens(processor, *size) - 1
        content: Any = [*shown, {"type": "text", "text": turn.text}] if processor is not None else turn.text
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.reply}]
    text = template.apply_chat_template(messages, tokenize=False)
    return len(tokenizer.encode(text, add_special_tokens=False)) + pictures
