"""`verl-steer synth`: one command from seeds to splits; what is dangerous is not printed unasked."""

import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml
from synthesis_builds import REVIEW, build, files_of, microworld, settings_for, write_seeds

from verl_steer.cli import main
from verl_steer.data.splits import read_split
from verl_steer.dialogue import Kind
from verl_steer.microworld.seeds import seeds
from verl_steer.synthesis.commands import _select
from verl_steer.synthesis.review import Review
from verl_steer.synthesis.selection_config import SelectionConfig
from verl_steer.synthesis.shards import Shards
from verl_steer.synthesis.show import describe

SELECTION = {"sft": {"size": 12}, "rl": {"size": 4}, "bench": {"size": 6}, "allow_short": True}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A build by the command, with its splits: (folder of it all, output of the command)."""
    folder = tmp_path_factory.mktemp("command")
    assert (
        main(["synth", "seeds-microworld", "--count", "16", "--seed", "7", "--out", str(folder / "seeds.parquet")]) == 0
    )
    with microworld() as server:
        settings = {**settings_for(server, folder), "selection": SELECTION}
        (folder / "build.yaml").write_text(yaml.safe_dump(settings))
        assert command(folder) == 0
    return folder


def command(folder, *more):
    return main(
        [
            "synth",
            "build",
            str(folder / "build.yaml"),
            "--seeds",
            str(folder / "seeds.parquet"),
            "--out",
            str(folder / "out"),
            *more,
        ]
    )


def test_one_command_makes_splits_that_add_up(world):
    out = world / "out"
    account = json.loads((out / "account.json").read_text())
    selection = json.loads((out / "splits" / "selection.json").read_text())
    assert (
        account["branches"]
        == sum(account["candidates"].values()) + sum(account["filtered"].values()) + account["failed"]
    )
    assert selection["candidates"] == sum(account["candidates"].values())
    for split in selection["splits"]:
        rows = list(read_split(out / "splits" / f"{split['name']}.parquet"))
        assert len(rows) == split["chosen"] > 0
        assert split["candidates"] == split["chosen"] + split["not_needed"] + sum(split["removed"].values())
    assert "red-team conversations" in (out / "WARNING.md").read_text()
    assert (out / "splits" / "WARNING.md").is_file()


def test_the_same_command_again_asks_nothing_and_changes_nothing(world):
    before = files_of(world / "out")
    with microworld() as server:  # the file names another port now, so any call would fail
        assert command(world) == 0
        assert not server.requests
    assert files_of(world / "out") == before


def test_status_says_how_far_a_build_is(world, capsys, tmp_path):
    assert main(["synth", "status", str(world / "out")]) == 0
    assert "out: finished\n16 seeds, 48 branches = " in capsys.readouterr().out
    assert main(["synth", "status", str(world / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers_under_way"] == 0
    assert main(["synth", "status", str(tmp_path)]) == 2
    assert "no folder of `verl-steer synth build`" in capsys.readouterr().err


def test_show_prints_a_candidate_and_red_team_text_only_if_asked(world, capsys):
    candidates = list(Shards.look(world / "out").candidates())
    for candidate in candidates:
        script, red = candidate.script, candidate.script.kind is Kind.RED_TEAM
        assert main(["synth", "show", str(world / "out"), script.id]) == (2 if red else 0)
        shown = capsys.readouterr()
        assert (script.turns[-1].text in shown.out) == (not red)
        if red:
            assert "add --red-team" in shown.err and script.turns[-1].text not in shown.err
    attack = next(c.script for c in candidates if c.script.kind is Kind.RED_TEAM)
    assert main(["synth", "show", str(world / "out"), attack.id, "--red-team"]) == 0
    assert attack.turns[-1].text in capsys.readouterr().out
    ended = next(iter(Shards.look(world / "out").ended("filtered")))
    assert main(["synth", "show", str(world / "out"), ended.id]) == 0
    assert f"{ended.id}: filtered: attack_failed" in capsys.readouterr().out
    assert main(["synth", "show", str(world / "out"), "nobody"]) == 2
    assert "no branch 'nobody'" in capsys.readouterr().err


def test_nothing_that_a_model_or_a_data_set_wrote_reaches_the_terminal_as_a_command(world, capsys):
    shards = Shards.look(world / "out")
    candidate = next(c for c in shards.candidates() if c.script.kind is Kind.BENIGN)
    odd = candidate.script.model_copy(update={"id": "a\x1b[2Jb", "category": "c\x9b8md"})
    shown = describe(dataclasses.replace(candidate, script=odd))
    assert shown.startswith("ab: benign, ") and "category cd\n" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_the_warning_is_there_before_the_rows(tmp_path, monkeypatch):
    (tmp_path / "review.yaml").write_text(REVIEW)
    build = SimpleNamespace(
        review=Review(tmp_path / "review.yaml"), shards=SimpleNamespace(candidates=lambda: iter(()))
    )

    def killed(candidates, config, out, progress):
        assert "red-team conversations" in (out / "WARNING.md").read_text()
        raise KeyboardInterrupt

    monkeypatch.setattr("verl_steer.synthesis.select.select_splits", killed)
    with pytest.raises(KeyboardInterrupt):
        _select(build, SelectionConfig(), tmp_path)


def test_without_a_review_nothing_is_written(tmp_path, capsys):
    write_seeds(tmp_path / "seeds.parquet", seeds(2, 1))
    with microworld() as server:
        settings = settings_for(server, tmp_path)
        settings["red_team"] = {}
        (tmp_path / "build.yaml").write_text(yaml.safe_dump(settings))
        assert command(tmp_path) == 2
        assert "red_team.review names no file" in capsys.readouterr().err and not server.requests
        assert not (tmp_path / "out").exists()
        assert command(tmp_path, "--no-red-team", "--no-select") == 0
        assert "4 branches" in capsys.readouterr().out
        assert not any(r["model"].endswith(("planner", "success", "forensics")) for r in server.requests)
    assert not (tmp_path / "out" / "WARNING.md").exists()


@pytest.mark.parametrize("instead", ["picture: false, ", ""])
def test_a_category_that_nobody_reviewed_is_filtered_and_never_asked_about(tmp_path, instead):
    rows = list(seeds(5, 1))
    file = write_seeds(tmp_path / "seeds.parquet", rows)
    (tmp_path / "partly.yaml").write_text(REVIEW.replace("picture: true, ", instead))
    with microworld() as server:
        _, account = build(server, file, tmp_path / "out", red_team={"review": str(tmp_path / "partly.yaml")})
        models = Counter(r["model"] for r in server.requests)
        # What an attack is after is the seed's own question, told to the model that scores its success.
        intents = json.dumps([r["messages"] for r in server.requests if r["model"] == "microworld-success"])
    unreviewed = [row.question for row in rows if row.category == "picture"]
    assert account.filtered["category_not_reviewed"] == len(unreviewed) == 2
    assert models["microworld-planner"] == models["microworld-forensics"] == len(rows) - len(unreviewed)
    assert [row.question in intents for row in rows] == [row.category != "picture" for row in rows]
    kinds = {c.script.kind for c in Shards.look(tmp_path / "out").candidates() if c.script.category == "picture"}
    assert Kind.RED_TEAM not in kinds


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": "one"}, "synth.seed='one': must be int"),
        ({"selection": {"sft": {"sise": 3}}}, "did you mean size?"),
        (
            {"held_sources": "microwrold"},
            "held_sources='microwrold' is the source of no seed; did you mean microworld?",
        ),
        (
            {"selection": {"bench": {"sources": ["microworld", "vlsbench"]}}},
            "selection.bench.sources='vlsbench' is the source of no seed (theirs: ['microworld'])",
        ),
    ],
)
def test_a_wrong_setting_is_said_before_any_call(tmp_path, capsys, change, says):
    write_seeds(tmp_path / "seeds.parquet", seeds(1, 1))
    with microworld() as server:
        (tmp_path / "build.yaml").write_text(yaml.safe_dump({**settings_for(server, tmp_path), **change}))
        assert command(tmp_path) == 2
        assert says in capsys.readouterr().err and not server.requests


@pytest.mark.parametrize(
    ("selection", "more"),
    [
        ({"bench": {"size": 0, "sources": "vlsbench"}}, ()),  # the split is left out
        ({"bench": {"sources": "vlsbench"}, "without": ["source"]}, ()),  # nobody asks
        ({"bench": {"sources": "vlsbench"}}, ("--no-select",)),
        ({"bench": {"sources": []}}, ()),  # all
    ],
)
def test_sources_that_nothing_asks_for_may_be_missing(tmp_path, selection, more):
    write_seeds(tmp_path / "seeds.parquet", seeds(1, 1))
    with microworld() as server:
        settings = {**settings_for(server, tmp_path), "selection": {"allow_short": True, **selection}}
        (tmp_path / "build.yaml").write_text(yaml.safe_dump(settings))
        assert command(tmp_path, *more) == 0


def test_seeds_must_be_seeds(world, capsys, tmp_path):
    bad = world / "out" / "splits" / "sft.parquet"
    assert main(["synth", "build", str(world / "build.yaml"), "--seeds", str(bad), "--out", str(tmp_path / "o")]) == 2
    assert "is a sft split, not seeds" in capsys.readouterr().err
    assert main(["synth", "seeds-microworld", "--count", "0", "--out", str(tmp_path / "s.parquet")]) == 2
    assert "give at least 1" in capsys.readouterr().err
