"""What the tests of the stages share: seeds, and one undisturbed build of them."""

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra cpu")
from synthesis_builds import build, microworld, write_seeds

from verl_steer.microworld.seeds import seeds


@pytest.fixture(scope="session")
def seed_file(tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("seeds") / "seeds.parquet", seeds(14, 3))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, seed_file):
    """An undisturbed build of the session's seeds: (folder, account, requests)."""
    out = tmp_path_factory.mktemp("finished") / "build"
    with microworld() as server:
        _, account = build(server, seed_file, out)
        return out, account, list(server.requests)
