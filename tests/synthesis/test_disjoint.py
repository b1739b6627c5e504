"""Do two files share anything: asked of the files, as the command and the build do."""

from dataclasses import replace

import pytest
from planted import Maker, texts_of

from verl_steer.cli import main
from verl_steer.data.rows import DataError
from verl_steer.synthesis.candidate import origin_of
from verl_steer.synthesis.disjoint import check
from verl_steer.synthesis.selection_config import SelectionConfig
from verl_steer.synthesis.written import as_row, write_split


@pytest.fixture
def files(tmp_path):
    """20 rows a split that share nothing, then one row for each way to share something."""
    maker = Maker(5)
    rl, bench, sft = ([maker.good(s) for _ in range(20)] for s in ("rl", "bench", "sft"))
    sft.append(maker.good("sft", cluster=rl[0].cluster))
    sft.append(maker.good("sft", image=bench[0].script.turns[0].images[0]))
    sft.append(maker.good("sft", image=rl[1].script.turns[0].images[0]))  # allowed: pictures are held out of bench
    sft.append(maker.good("sft", maker.loud(texts_of(rl[2])), image=rl[2].script.turns[0].images[0]))
    long = maker.good("bench", turns=10)
    bench.append(long)
    sft.append(maker.good("sft", [*texts_of(long)[:9], maker.texts(1)[0]]))
    paths = {}
    for split, rows in (("rl", rl), ("bench", bench), ("sft", sft)):
        paths[split] = tmp_path / f"{split}.parquet"
        write_split(paths[split], split, [as_row(c, split, n) for n, c in enumerate(rows)])
    return paths, [c.script.id for c in sft[20:]]


def test_each_way_to_share_is_found_and_nothing_else(files):
    paths, (by_seed, by_picture, _, copied, near) = files
    found = check(list(paths.values()), SelectionConfig())
    assert found.overlaps == {"cluster": 1, "picture": 1, "exact_across": 1, "near_across": 2}  # a copy is near too
    assert {(one.rule, one.row) for one in found.examples} == {
        ("cluster", by_seed),
        ("picture", by_picture),
        ("exact_across", copied),
        ("near_across", copied),
        ("near_across", near),
    }
    assert list(found.rows.values()) == [20, 21, 25]


def test_rules_can_be_left_out_and_pictures_can_tell_rows_apart(files):
    paths, _ = files
    config = SelectionConfig.from_mapping(
        {"without": ["cluster", "picture", "exact_across"], "near": {"across": "same"}}
    )
    assert check(list(paths.values()), config).overlaps == {"near_across": 1}


def test_the_command_names_the_rows_and_fails(files, capsys):
    paths, ids = files
    assert main(["data", "disjoint", str(paths["rl"]), str(paths["sft"])]) == 1
    out = capsys.readouterr().out
    assert f"cluster: row '{ids[0]}' of {paths['sft']} and row " in out
    assert "20 (rl.parquet) + 25 (sft.parquet) rows compared: cluster 1, exact_across 1, near_across 1" in out
    assert main(["data", "disjoint", str(paths["rl"]), str(paths["bench"])]) == 0
    assert "rows compared: nothing is shared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "give at least two files"),
        (["{rl}"], "give at least two files, each of them once"),
        (["{sft}", "--without", "nearly"], "is no rule; did you mean near"),
        (["{sft}", "--threshold", "0.1"], "selection.near.threshold=0.1: must be in 0.5..1"),
        (["missing.parquet"], "missing.parquet"),
    ],
)
def test_the_command_says_what_is_wrong(files, capsys, more, said):
    paths, _ = files
    assert main(["data", "disjoint", str(paths["rl"]), *(word.format(**paths) for word in more)]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_row_is_named(files, tmp_path):
    paths, _ = files
    import pyarrow.parquet as pq

    table = pq.read_table(paths["sft"])
    damaged = table.set_column(table.schema.get_field_index("kind"), "kind", [["benign"] * 24 + ["odd"]])
    pq.write_table(damaged, tmp_path / "odd.parquet")
    with pytest.raises(DataError, match=r"odd.parquet: row .*kind.*data validate"):
        check([paths["rl"], tmp_path / "odd.parquet"], SelectionConfig())


def test_variants_of_one_published_question_are_one_cluster_whatever_their_seeds(tmp_path):
    """Four pictures with one question are four rows of their source, so four seeds."""
    maker = Maker(6)
    paths = []
    for split, seed in (("rl", "first"), ("sft", "second")):
        candidate = maker.good(split)
        meta = {**candidate.script.meta, "seed_id": seed, "source_id": "question 7"}
        script = candidate.script.model_copy(update={"meta": meta})
        assert origin_of(meta) == "question 7"
        row = as_row(replace(candidate, script=script, cluster=origin_of(meta)), split, 0)
        assert row.meta["seed_id"] == seed and origin_of(row.meta) == "question 7"
        paths.append(tmp_path / f"{split}.parquet")
        write_split(paths[-1], split, [row])
    assert check(paths, SelectionConfig()).overlaps == {"cluster": 1}


def test_a_row_says_the_cluster_that_its_candidate_has():
    candidate = Maker(7).good("rl", cluster="of somebody's own")
    for meta in ({}, {"seed_id": "a"}, {"seed_id": "a", "source_id": "b"}):
        script = candidate.script.model_copy(update={"meta": meta})
        assert origin_of(as_row(replace(candidate, script=script), "rl", 0).meta) == "of somebody's own"
