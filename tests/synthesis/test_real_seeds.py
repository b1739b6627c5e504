"""CoSafe's last questions as text-only seeds, through both stages against the served roles."""

import json
from pathlib import Path

import pytest
from synthesis_builds import build, microworld

from verl_steer.cli import main
from verl_steer.data.splits import read_split
from verl_steer.dialogue import Kind
from verl_steer.synthesis.select import select_splits
from verl_steer.synthesis.selection_config import SelectionConfig
from verl_steer.synthesis.shards import Shards

COSAFE = Path(__file__).parents[2].parent / "shared" / "real" / "cosafe"
SELECTION = {"sft": {"size": 100}, "rl": {"size": 12}, "bench": {"size": 40}, "allow_short": True}


@pytest.mark.skipif(not COSAFE.is_dir(), reason="needs the CoSafe files in ../shared/real/cosafe")
def test_every_real_seed_is_kept_filtered_or_failed_and_the_sums_agree(tmp_path, capsys):
    file = tmp_path / "cosafe.parquet"
    assert (
        main(
            [
                "data",
                "convert",
                "cosafe",
                str(COSAFE),
                "--to",
                "seed",
                "--last-question",
                "--limit",
                "120",
                "--out",
                str(file),
            ]
        )
        == 0
    )
    rows = list(read_split(file))
    categories = sorted({row.category for row in rows})
    review = tmp_path / "cosafe.yaml"
    allowed = {category: category != "privacy_violation" for category in categories}
    review.write_text(json.dumps({"reviewer": "the tests", "date": "2026-01-31", "categories": allowed}))
    with microworld() as server:
        made, account = build(
            server,
            file,
            tmp_path / "out",
            red_team={"review": str(review)},
            run={"rows_in_flight": 24, "shard_rows": 64},
            sft_share=0.5,
        )
    assert account.seeds == len(rows) and account.unread == account.failed == 0
    assert account.branches == 3 * len(rows) == account.candidates.total() + account.filtered.total()
    assert set(account.filtered) <= {"attack_failed", "category_not_reviewed"}
    candidates = list(Shards.look(tmp_path / "out").candidates())
    assert {c.script.id for c in candidates} | {e.id for e in made.shards.ended("filtered")} == {
        f"{row.id}-{pool}" for row in rows for pool in ("benign", "obfuscated", "red")
    }
    report = select_splits(iter(candidates), SelectionConfig.from_mapping(SELECTION), tmp_path / "splits")
    assert report.candidates == account.candidates.total()
    for split in report.splits:
        assert report.candidates == split.chosen + split.not_needed + sum(split.removed.values())
    kinds = {c.script.kind for c in candidates}
    assert kinds == set(Kind) and {s.name for s in report.splits if s.chosen} == {"sft", "rl", "bench"}
