"""Rows of every source go through verl's own data sets, and the SFT loss mask covers exactly the assistant turns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

pytest.importorskip("verl")
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from PIL import Image
from published_sources import FIXTURES, build
from tiny_model import build_tiny_vlm

from verl_steer.data import sources
from verl_steer.data.convert import convert
from verl_steer.data.options import Options
from verl_steer.data.rows import row_to_script
from verl_steer.data.schemas import to_script
from verl_steer.data.splits import read_split

COSAFE = Path(__file__).parents[3] / "shared" / "real" / "cosafe"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Tokenizer and processor of a Qwen2.5-VL, without its weights."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(build_tiny_vlm(tmp_path_factory.mktemp("student") / "tiny"))
    return processor.tokenizer, processor


def split(tmp_path, name: str, to: str) -> Path:
    """A fixture, or the real files, as a split."""
    out = tmp_path / f"{name}.{to}.parquet"
    if name == "real":
        if not COSAFE.is_dir():
            pytest.skip("the CoSafe files are not part of the project")
        account = convert(sources.get("cosafe"), Options(to=to, paths=(COSAFE,)), out)
        assert (account.read, account.written) == (400, 400)
        return out
    fixture = build(name, tmp_path)
    convert(sources.get(FIXTURES[name][0]), Options(to=to, paths=(fixture.path,), images=fixture.images), out)
    return out


def config(tmp_path, **more):
    return OmegaConf.create({"cache_dir": str(tmp_path / "cache"), **more})


@pytest.mark.parametrize("name", [*FIXTURES, "real"])
def test_every_rl_row_goes_through_verls_rlhf_data_set(tmp_path, student, name, capsys):
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    from verl_steer.plugin.dataset import SteerDataset

    tokenizer, processor = student
    path = split(tmp_path, name, "rl")
    rows = list(read_split(path))
    options = config(
        tmp_path, max_prompt_length=4096, max_response_length=8192, return_raw_chat=True, filter_overlong_prompts=False
    )
    ours = SteerDataset(str(path), tokenizer, options, processor)
    assert len(ours) == len(rows) > 0
    assert f"{len(rows)} rows in = {len(rows)} kept + 0 rejected" in capsys.readouterr().out
    for n, row in enumerate(rows):
        item = ours[n]
        assert item["agent_name"] == "steer" and item["index"] == n
        assert row_to_script({**item, "prompt": item["raw_prompt"]}) == to_script(row)
    batch = collate_fn([ours[n] for n in range(len(rows))])
    assert len(batch["raw_prompt"]) == len(rows)
    # verl's own class, which decodes and places the pictures itself.
    plain = RLHFDataset(str(path), tokenizer, options, processor)
    for n, row in enumerate(rows):
        parts = [p for m in plain[n]["raw_prompt"] if not isinstance(m["content"], str) for p in m["content"]]
        assert sum(p["type"] == "image" for p in parts) == len(row.turns[0].images)


SFT = [name for name, (source, _) in FIXTURES.items() if sources.get(source).replies and source != "reference_bench"]


@pytest.mark.parametrize("name", [*SFT, "real"])
def test_every_sft_row_goes_through_verls_multiturn_data_set(tmp_path, student, name):
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    tokenizer, processor = student
    path = split(tmp_path, name, "sft")
    rows = list(read_split(path))
    data = MultiTurnSFTDataset(
        [str(path)], tokenizer, config(tmp_path, max_length=8192, pad_mode="no_padding"), processor
    )
    assert len(data) == len(rows) > 0
    for n, row in enumerate(rows):
        item = data[n]
        ids, mask = item["input_ids"].tolist(), item["loss_mask"].tolist()
        assert assistant_spans(ids, tokenizer) == learned_spans(mask), f"{name} row {n}"
        said = [tokenizer.decode(ids[a:b]) for a, b in learned_spans(mask)]
        assert said == [f"{turn.reply}<|im_end|>\n" for turn in row.turns]
        shown = [image for turn in row.turns for image in turn.images]
        grid = item.get("multi_modal_inputs", {}).get("image_grid_thw")
        assert (0 if grid is None else len(grid)) == len(shown)
        # A patch grid has the picture's shape: what the row showed is what the model sees, in order.
        for (_, high, wide), image in zip(grid.tolist() if grid is not None else [], shown, strict=True):
            with Image.open(io.BytesIO(image.data)) as opened:
                assert (high >= wide) == (opened.height >= opened.width) or high == wide


def learned_spans(mask: list[int]) -> list[tuple[int, int]]:
    """Runs of ones."""
    edges = [0, *mask, 0]
    starts = [n for n in range(len(mask)) if edges[n + 1] == 1 and edges[n] == 0]
    ends = [n for n in range(1, len(mask) + 1) if edges[n] == 1 and edges[n + 1] == 0]
    return list(zip(starts, ends, strict=True))


def assistant_spans(ids: list[int], tokenizer) -> list[tuple[int, int]]:
    """From behind `<|im_start|>assistant\\n` to behind the turn's `<|im_end|>\\n`, found in the ids alone."""
    start = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    end = tokenizer.encode("<|im_end|>\n", add_special_tokens=False)

    def at(n: int, what: list[int]) -> bool:
        return ids[n : n + len(what)] == what

    spans = []
    for n in range(len(ids)):
        if at(n, start):
            stop = next(k for k in range(n, len(ids)) if at(k, end))
            spans.append((n + len(start), stop + len(end)))
    return spans


def test_a_control_token_in_a_reply_would_move_the_mask_and_cannot_be_written(tmp_path):
    """The check above would see it; the schema does not let it in."""
    from verl_steer.data.schemas import SftRow

    with pytest.raises(ValueError, match="control token"):
        SftRow(id="a", source="s", kind="benign", turns=[{"text": "q", "reply": "a<|im_end|>\n<|im_start|>user\nb"}])


def test_the_columns_are_those_verl_looks_for(tmp_path):
    names = pq.read_schema(split(tmp_path, "sharegpt", "sft")).names
    assert {"messages", "images"} <= set(names) and not {"tools", "enable_thinking", "videos"} & set(names)


def test_overlong_rows_are_accounted_for_by_name(tmp_path, student):
    from verl_steer.plugin.dataset import SteerDataset

    tokenizer, processor = student
    path = split(tmp_path, "cosafe", "rl")
    options = config(
        tmp_path, max_prompt_length=64, max_response_length=150, on_bad_row="reject", rejected_dir=str(tmp_path / "r")
    )
    data = SteerDataset(str(path), tokenizer, options, processor)
    rejected = next((tmp_path / "r").glob("rejected_*.jsonl")).read_text().splitlines()
    assert len(data) + len(rejected) == 3 and 0 < len(rejected) < 3
