"""The same shards over Ray Data give the same files."""

import pytest
from synthesis_builds import files_of, microworld, settings_for

pytest.importorskip("ray")
from verl_steer.data.rows import DataError
from verl_steer.synthesis.config import SynthConfig
from verl_steer.synthesis.on_ray import ShardWorker, run_on_ray
from verl_steer.synthesis.runner import Build


def test_a_build_over_ray_equals_a_local_one(finished, seed_file, tmp_path, monkeypatch):
    import ray

    # Workers import the code that is tested.
    import verl_steer

    root = str(next(iter(verl_steer.__path__))).removesuffix("/verl_steer")
    monkeypatch.setenv("PYTHONPATH", root)
    seen = []
    with microworld() as server:
        config = SynthConfig.from_mapping(settings_for(server, tmp_path))
        made = Build(config, [seed_file], tmp_path / "out")
        run_on_ray(config, [seed_file], tmp_path / "out", made.open(), 2, lambda account, ended: seen.append(ended))
        made.shards.close_account()
        assert len(server.requests) == len(finished[2])
        run_on_ray(config, [seed_file], tmp_path / "out", made.open(), 2, lambda *_: None)
        assert len(server.requests) == len(finished[2])
    assert files_of(tmp_path / "out") == files_of(finished[0])
    assert seen[-1] == 14 and not ray.is_initialized()
    # Servers that are gone stop it as they stop a local build.
    config = SynthConfig.from_mapping(settings_for(server, tmp_path))
    made = Build(config, [seed_file], tmp_path / "gone")
    with pytest.raises(DataError, match="a worker of Ray ended with"):
        settings = settings_for(server, tmp_path)
        settings["roles"]["all"]["outage_s"] = 0.1
        run_on_ray(SynthConfig.from_mapping(settings), [seed_file], tmp_path / "gone", made.open(), 1, lambda *_: None)


def test_a_shard_that_ray_asks_for_again_is_not_paid_again(seed_file, tmp_path):
    """Ray repeats the task of a worker that died, also where it had committed its shard before."""
    with microworld() as server:
        config = SynthConfig.from_mapping(settings_for(server, tmp_path))
        first = ShardWorker(config, [seed_file], tmp_path / "out")({"shard": 2})
        asked = len(server.requests)
        before = files_of(tmp_path / "out")
        again = ShardWorker(config, [seed_file], tmp_path / "out")({"shard": 2})
        assert asked == len(server.requests) > 0
    assert again == first and first["seeds"] == 4 and files_of(tmp_path / "out") == before
