"""Four hundred dialogues that nobody here wrote: what is removed as near, against all pairs compared plainly."""

import itertools
from pathlib import Path

import planted
import pytest

from verl_steer.data import sources
from verl_steer.data.convert import convert
from verl_steer.data.options import Options
from verl_steer.data.schemas import ScriptRow
from verl_steer.data.splits import read_split
from verl_steer.synthesis.candidate import Candidate
from verl_steer.synthesis.select import select_splits
from verl_steer.synthesis.selection_config import SelectionConfig

COSAFE = Path(__file__).parents[3] / "shared" / "real" / "cosafe"

pytestmark = pytest.mark.skipif(not COSAFE.is_dir(), reason="the CoSafe files are not part of the project")


def test_of_each_near_pair_one_row_is_left_and_no_other_row_is_lost(tmp_path):
    convert(sources.get("cosafe"), Options(to="sft", paths=(COSAFE,)), tmp_path / "cosafe.parquet")
    dialogues = list(read_split(tmp_path / "cosafe.parquet"))
    texts = {row.id: [turn.text for turn in row.turns] for row in dialogues}
    near = {
        frozenset(pair)
        for pair in itertools.combinations(texts, 2)
        if planted.jaccard(texts[pair[0]], texts[pair[1]]) >= 0.8
    }
    assert len(dialogues) == 400 and near

    def candidate(row):
        shared = {name: getattr(row, name) for name in ("id", "source", "licence", "category", "kind", "system")}
        script = ScriptRow(**shared, turns=[{"text": turn.text} for turn in row.turns])
        return Candidate(script, row.id, (planted.GOOD,) * len(row.turns), row)

    config = SelectionConfig.from_mapping(
        {"allow_short": True, "sft": {"size": 400}, "rl": {"size": 0}, "bench": {"size": 0}}
    )
    report = select_splits(map(candidate, dialogues), config, tmp_path / "out")
    left = {row.id for row in read_split(tmp_path / "out/sft.parquet")}
    lost = set(texts) - left
    assert all(len(pair & left) == 1 for pair in near)
    assert lost <= set().union(*near)
    assert report.splits[0].removed == {
        rule: n for rule, n in report.splits[0].removed.items() if rule in ("exact", "near")
    }
    assert sum(report.splits[0].removed.values()) == len(lost) == 400 - report.splits[0].chosen
