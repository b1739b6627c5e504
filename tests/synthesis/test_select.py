"""Candidates into splits: who is drawn, what is written, and what does not matter."""

import csv
import dataclasses
import io
import json
import random
from collections import Counter
from pathlib import Path

import planted
import pyarrow.parquet as pq
import pytest
import yaml
from planted import Maker

from verl_steer.checked import ConfigError
from verl_steer.data.rows import DataError
from verl_steer.data.splits import read_split
from verl_steer.data.validate import turns_of, validate
from verl_steer.dialogue import Kind
from verl_steer.synthesis.report import TooFew
from verl_steer.synthesis.select import select_splits
from verl_steer.synthesis.selection_config import SPLITS, SWITCHES, SelectionConfig
from verl_steer.synthesis.written import as_row, write_split


def settings(**changes):
    sizes = {"sft": {"size": 40}, "rl": {"size": 20}, "bench": {"size": 20}}
    merged = {split: {**sizes[split], **changes.pop(split, {})} for split in SPLITS}
    return SelectionConfig.from_mapping({**merged, **changes})


@pytest.fixture(scope="module")
def candidates():
    """Three rows a seed, one of each pool, and lengths that go round."""
    maker = Maker(7)
    return [
        maker.good("any", turns=2 + (n + k) % 9, kind=kind, cluster=f"seed-{n}")
        for n in range(90)
        for k, kind in enumerate(Kind)
    ]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_sizes_ratio_lengths_and_means_come_out_as_wanted(candidates, tmp_path):
    report = select_splits(candidates, settings(), tmp_path)
    rows = {split: list(read_split(tmp_path / f"{split}.parquet")) for split in SPLITS}
    assert {split: len(r) for split, r in rows.items()} == {"sft": 40, "rl": 20, "bench": 20}
    assert Counter(row.kind.harmful for row in rows["rl"]) == {False: 5, True: 15}
    for split, mean in (("sft", 6.35), ("rl", 8.33), ("bench", 8.55)):
        turns = [len(turns_of(row)) for row in rows[split]]
        assert set(turns) == set(range(2, 11))
        # Nine lengths must stay; with 20 rows that holds the mean down.
        assert sum(turns) / len(turns) == pytest.approx(mean, abs=0.3 if split == "sft" else 1.0)
        assert validate(rows[split])[1] == []
    assert report.used == 80 and not report.missing
    assert [row.index for row in rows["rl"]] == list(range(20))


def test_seeds_and_bench_pictures_never_part_over_splits(candidates, tmp_path):
    select_splits(candidates, settings(), tmp_path)
    homes = {}
    for split in SPLITS:
        for row in read_split(tmp_path / f"{split}.parquet"):
            assert homes.setdefault(row.meta["seed_id"], split) == split
            for image in turns_of(row)[0].images:
                assert homes.setdefault(image.sha256, split) == split


def test_the_same_candidates_in_any_order_give_the_same_bytes_and_another_seed_others(candidates, tmp_path):
    # One id twice with other content, so that the tie cannot be broken by the id.
    twin = planted.Maker(99).good("any", turns=5)
    twin = dataclasses.replace(twin, script=twin.script.model_copy(update={"id": candidates[0].script.id}))
    given = [*candidates, twin]
    select_splits(given, settings(sft={"size": 60}), tmp_path / "a")
    for n in range(2):
        random.Random(n).shuffle(given)
        select_splits(iter(given), settings(sft={"size": 60}), tmp_path / "b")
        assert contents(tmp_path / "a") == contents(tmp_path / "b")
    select_splits(given, settings(sft={"size": 60}, seed=1), tmp_path / "c")
    assert (tmp_path / "a/rl.parquet").read_bytes() != (tmp_path / "c/rl.parquet").read_bytes()


def test_every_candidate_has_one_fate_in_every_split(candidates, tmp_path):
    report = select_splits([*candidates, *candidates[:5]], settings(), tmp_path)
    for split in report.splits:
        assert split.candidates == split.chosen + split.not_needed + sum(split.removed.values()) == 275
    with (tmp_path / "candidates.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 275
    assert {split: sum(line[split] == "chosen" for line in lines) for split in SPLITS} == {
        "sft": 40,
        "rl": 20,
        "bench": 20,
    }
    with (tmp_path / "removals.csv").open(encoding="utf-8") as file:
        removals = [(line["split"], line["what"], int(line["rows"])) for line in csv.DictReader(file)]
    assert removals == list(report.removals())
    stored = json.loads((tmp_path / "selection.json").read_text())
    assert stored["splits"][0]["sha256"] == report.splits[0].sha256 and stored["settings"]["rl"]["size"] == 20


def test_too_few_candidates_are_told_and_nothing_is_written(candidates, tmp_path):
    (tmp_path / "rl.parquet").write_text("what was here before")
    with pytest.raises(TooFew, match=r"rl: 90 of 100 benign rows, 10 are missing") as caught:
        select_splits(candidates, settings(rl={"size": 400}, order=["rl", "bench", "sft"]), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["rl.parquet"]
    assert (tmp_path / "rl.parquet").read_text() == "what was here before"
    assert any("rl: 180 of 300 harmful rows" in line for line in caught.value.report.missing)
    # rl took a row of every seed, so none is left for the others.
    assert any(line.startswith("sft: 0 of 40 rows") for line in caught.value.report.missing)


def test_allow_short_writes_what_there_is_even_if_that_is_nothing(candidates, tmp_path):
    report = select_splits(candidates, settings(rl={"size": 400}, allow_short=True), tmp_path)
    assert {split.name: split.chosen for split in report.splits} == {"rl": 270, "bench": 0, "sft": 0}
    assert pq.read_metadata(tmp_path / "sft.parquet").num_rows == 0
    assert (tmp_path / "sft.parquet.card/README.md").is_file()


def test_a_fault_half_way_leaves_the_earlier_result_as_it_was(candidates, tmp_path, monkeypatch):
    select_splits(candidates, settings(), tmp_path)
    before = contents(tmp_path)

    def broken(path):
        raise OSError("disk full")

    monkeypatch.setattr("verl_steer.synthesis.select.write_card", broken)
    with pytest.raises(OSError, match="disk full"):
        select_splits(candidates, settings(seed=5), tmp_path)
    assert contents(tmp_path) == before


def test_the_table_says_what_each_rule_removed_and_notes_what_is_off(candidates, tmp_path):
    from rich.console import Console

    short = [c for c in candidates if len(c.script.turns) < 6]
    wanted = settings(rl={"size": 0}, bench={"size": 3}, sft={"min_turns": 3})
    report = select_splits(short, wanted, tmp_path)
    shown = io.StringIO()
    Console(width=80, file=shown).print(report.table())
    text = " ".join(shown.getvalue().split())
    assert f"{len(short)} candidates, 43 used" in text
    assert "│ wanted │ 3 │ 40 │" in text and f"│ - turns │ │ {report.splits[1].removed['turns']} │" in text
    assert "│ chosen │ 3 │ 40 │" in text and "│ wanted │ 8.55 │ 6.35 │" in text
    notes = "\n".join(note for split in report.splits for note in split.notes)
    assert "bench: no row of " in notes and "size too small" in notes
    assert "sft: no candidate of 6, 7, 8, 9, 10 turns was left by the rules" in notes
    assert "6.35 wanted: lengths ran out" in notes


def test_what_a_killed_run_left_does_not_stay(candidates, tmp_path):
    select_splits(candidates, settings(), tmp_path / "a")
    (tmp_path / "b/.selection.tmp/sft.parquet.card").mkdir(parents=True)
    (tmp_path / "b/.selection.tmp/sft.parquet").write_text("half")
    (tmp_path / "b/.selection.tmp/more.txt").write_text("half")
    select_splits(candidates, settings(), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_row_that_no_file_can_hold_costs_only_itself(candidates, tmp_path):
    bad = dataclasses.replace(
        candidates[0], script=candidates[0].script.model_copy(update={"id": "bad", "system": "look at <image>"})
    )
    bad = dataclasses.replace(bad, cluster="seed-bad", dialogue=None)
    with_bad = [bad, *(c for c in candidates if c.cluster != "seed-0")]
    report = select_splits(with_bad, settings(rl={"size": 400}, bench={"size": 0}, allow_short=True), tmp_path)
    assert report.splits[0].removed["unwritable"] == 1
    assert "bad,seed-bad,benign,no_dialogue,,unwritable" in (tmp_path / "candidates.csv").read_text()


def test_a_split_of_size_0_is_left_out(candidates, tmp_path):
    report = select_splits(candidates, settings(bench={"size": 0}), tmp_path)
    assert [split.name for split in report.splits] == ["rl", "sft"]
    assert not (tmp_path / "bench.parquet").exists()


def test_a_split_that_is_no_longer_wanted_does_not_stay_beside_the_new_ones(candidates, tmp_path):
    """The rows of the old bench may be in the new SFT split by now."""
    select_splits(candidates, settings(), tmp_path / "a")
    select_splits(candidates, settings(bench={"size": 0}), tmp_path / "a")
    select_splits(candidates, settings(bench={"size": 0}), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_id_that_is_a_formula_is_a_text_in_the_csv_file(candidates, tmp_path):
    odd = dataclasses.replace(
        candidates[0], script=candidates[0].script.model_copy(update={"id": "=1+1"}), cluster="@seed"
    )
    select_splits([odd, *candidates[3:]], settings(), tmp_path)
    assert "\n'=1+1,'@seed,benign," in (tmp_path / "candidates.csv").read_text()


def test_a_candidate_without_its_seed_is_an_error(candidates, tmp_path):
    lost = dataclasses.replace(candidates[3], cluster="")
    with pytest.raises(DataError, match=r"'any-000004' has no cluster"):
        select_splits([*candidates, lost], settings(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_overlap_are_not_published(candidates, tmp_path, monkeypatch):
    monkeypatch.setattr("verl_steer.synthesis.seen.Seen.across", lambda *_: None)
    with pytest.raises(DataError, match=r"the splits overlap .*cluster: row .*bench.parquet"):
        select_splits(candidates, settings(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_row_groups_are_bounded_by_rows_and_by_picture_bytes(candidates, tmp_path, monkeypatch):
    rows = [as_row(c, "bench", n) for n, c in enumerate(candidates[:20])]
    monkeypatch.setattr("verl_steer.synthesis.written.PART_ROWS", 8)
    write_split(tmp_path / "a.parquet", "bench", rows)
    monkeypatch.setattr(
        "verl_steer.synthesis.written.PART_BYTES", max(len(turns_of(row)[0].images[0].data) for row in rows) + 1
    )
    write_split(tmp_path / "b.parquet", "bench", rows)
    sizes = []
    for name in ("a", "b"):
        data = pq.read_metadata(tmp_path / f"{name}.parquet")
        sizes.append([data.row_group(n).num_rows for n in range(data.num_row_groups)])
        assert list(read_split(tmp_path / f"{name}.parquet")) == rows
    assert sizes == [[8, 8, 4], [2] * 10]


def test_siblings_first_uses_up_fewer_seeds_and_changes_nothing_else(candidates, tmp_path):
    seeds = {}
    for siblings in ("any", "first"):
        report = select_splits(candidates, settings(bench={"siblings": siblings}), tmp_path / siblings)
        rows = list(read_split(tmp_path / siblings / "bench.parquet"))
        seeds[siblings] = len({row.meta["seed_id"] for row in rows})
        assert len(rows) == 20 and {len(row.turns) for row in rows} == set(range(2, 11)) and not report.missing
    assert seeds["first"] < seeds["any"]


def test_sft_rows_are_the_dialogues_and_the_others_the_scripts(candidates, tmp_path):
    one = candidates[0]
    asked = tuple(t.model_copy(update={"text": f"rewritten {t.text}"}) for t in one.dialogue.turns)
    given = [dataclasses.replace(one, dialogue=one.dialogue.model_copy(update={"turns": asked}))]
    for split in ("sft", "rl"):
        sizes = {s: {"size": int(s == split), "mean_turns": None, "benign": 0, "harmful": 0} for s in SPLITS}
        select_splits(given, SelectionConfig.from_mapping(sizes), tmp_path / split)
    (sft,), (rl,) = (list(read_split(tmp_path / s / f"{s}.parquet")) for s in ("sft", "rl"))
    assert sft.turns[0].text.startswith("rewritten ") and sft.turns[0].reply
    assert rl.turns[0].text == one.script.turns[0].text


def test_what_the_page_shows_works(candidates, tmp_path):
    page = (Path(__file__).parents[2] / "docs/selection.md").read_text(encoding="utf-8")
    block = page.split("```yaml")[1].split("```")[0]
    config = SelectionConfig.from_mapping(yaml.safe_load(block)["selection"])
    assert config.bench.sources == ("vlsbench", "mm_safetybench") and not config.on("picture")
    assert (config.keep.tau_help, config.near.threshold, config.rl.mean_turns) == (6.5, 0.85, 8.33)
    free = SelectionConfig.from_mapping({"rl": {"mean_turns": None, "size": None}})
    assert free.rl.mean_turns is None and free.rl.size == SelectionConfig().rl.size, "null: only where None is a value"
    report = select_splits(candidates, config, tmp_path)
    assert report.splits[1].removed["source"] == len(candidates)
    rules = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rules == set(SWITCHES)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"without": ["neer"]}, "did you mean near"),
        ({"rl": {"size": -1}}, "selection.rl.size=-1"),
        ({"bench": {"sise": 1}}, "selection.bench.sise is not a known key; did you mean size"),
        ({"sft": {"min_turns": 5, "max_turns": 3}}, "sft.min_turns=5, sft.max_turns=3"),
        ({"sft": {"mean_turns": 11}}, "sft.mean_turns=11"),
        ({"keep": {"tau_safe": 11}}, "selection.keep.tau_safe=11"),
        ({"risk": {"min_success": 0}}, "risk.min_success=0"),
        ({"bench": {"siblings": "last"}}, "bench.siblings='last' is not one of any, first"),
        ({"near": {"threshold": 0.2}}, "near.threshold=0.2"),
        ({"near": {"across": "all"}}, "near.across='all'"),
        ({"order": ["rl", "sft"]}, "must name each of sft, rl, bench once"),
    ],
)
def test_wrong_settings_are_named(keys, said):
    with pytest.raises(ConfigError) as caught:
        SelectionConfig.from_mapping(keys)
    assert said in str(caught.value)
