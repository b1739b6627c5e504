"""A real vLLM server for the tests of this folder; they run in the environment that setup.sh makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The ordinary suite has no vLLM: there these tests are skipped, by a reason that says how to run them."""
    if os.environ.get("VERL_STEER_VLLM") == "1":
        return
    skip = pytest.mark.skip(reason="needs the environment of `bash tests/run.sh --vllm`")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tutor_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tutor of random weights behind `vllm serve`, shared by all tests: each server takes a minute to start."""
    from tiny_tutor import build_tiny_tutor
    from vllm_server import serve

    folder = tmp_path_factory.mktemp("tutor")
    with serve(build_tiny_tutor(folder / "model"), "tutor", folder / "server.log") as server:
        yield server
