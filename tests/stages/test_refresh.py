"""What older results lack comes from the folder that they were made in; what they hold must come out as it stands."""

import json

import pytest
from bench_worlds import bench, world_bench

from verl_steer.stages import result as results
from verl_steer.stages.plan import Place
from verl_steer.stages.refresh import refresh


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A work folder with a constant policy's bench run, which also stands as that of a trained arm, and the arm's records."""
    root = tmp_path_factory.mktemp("work")
    place = Place(root, 10)
    world_bench(root / "bench.parquet")
    for out, which in ((root / "constants", "all"), (place.played("full"), "refuse")):
        assert bench("run", root / "bench.parquet", "--out", out, "--policy", which) == 0
    for played in (root / "constants" / "refuse", place.played("full")):
        assert bench("judge", played, "--judge", results.JUDGE) == 0
    turn = {"planned": "q", "asked": "q", "scores": {"safety": 10}, "reply_tokens": 2, "reward": 1.0}
    for split, step in (("train", 1), ("val", 0)):
        folder = place.arm("full") / "records" / split
        folder.mkdir(parents=True)
        record = {"step": step, "uid": "u", "session": 0, "kind": "benign", "masked": False, "return": 1.0}
        (folder / f"step_{step:06d}.jsonl").write_text(
            json.dumps(record | {"planned_turns": 1, "turns": [turn]}) + "\n"
        )
    return root


@pytest.fixture
def older(experiment, tmp_path):
    """Results as an earlier version wrote them: nothing by rule, nothing of what was met."""
    hashes = {"config_hash": "c", "world_hash": "w"}
    constant = results.from_bench(experiment / "constants" / "refuse", experiment / "bench.parquet")
    full = results.from_bench(Place(experiment, 10).played("full"), experiment / "bench.parquet")
    curve = results.curve_of(Place(experiment, 10).arm("full") / "records")
    found = [
        results.Result(arm="refuse", **hashes, **(constant | {"by_rule": {}})),
        results.Result(arm="full", seed=10, **hashes, **(full | {"by_rule": {}}), curve=curve),
        results.Result(arm="base", seed=10, **hashes, **(full | {"by_rule": {}})),
    ]
    for one in found:
        results.write(one, tmp_path)
    return tmp_path


def test_what_is_new_is_added_and_a_result_whose_run_is_gone_is_named(experiment, older):
    written, absent = refresh(experiment, older)
    assert {path.stem for path in written} == {"constant-refuse", "seed10-full"} and absent == ["seed10-base"]
    full, constant = (results.read(older / f"{name}.json") for name in ("seed10-full", "constant-refuse"))
    assert full.met is not None and (full.met.rollouts, full.met.tokens) == (1, 2)
    assert constant.met is None
    assert constant.by_rule and all(found["twin_accuracy"] == 0.0 for found in constant.by_rule.values())
    assert refresh(experiment, older) == ([], ["seed10-base"])


def test_a_figure_that_comes_out_otherwise_is_an_error_and_changes_nothing(experiment, older):
    path = older / "seed10-full.json"
    kept = path.read_text().replace('"over_refusal": 1.0', '"over_refusal": 0.5')
    path.write_text(kept)
    with pytest.raises(
        results.ResultError, match=r"seed10-full: measures\.over_refusal would come out otherwise than it stands"
    ):
        refresh(experiment, older)
    assert path.read_text() == kept
