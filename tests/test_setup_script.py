"""Where tests/setup.sh installs what; a copy of it is asked in an empty folder, so nothing is installed."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup(tmp_path):
    """Calls the copy; answers (exit status, output). Any `python` of an environment there installs nothing."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "setup.sh", tmp_path / "tests")
    (tmp_path / "pyproject.toml").touch()
    for folder in (".venv", ".venv-gpu"):
        python = tmp_path / folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\nexit 0\n")
        python.chmod(0o755)

    def call(*arguments: str, **variables: str) -> tuple[int, str]:
        known = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **variables}
        done = subprocess.run(
            ["bash", str(tmp_path / "tests" / "setup.sh"), *arguments],
            env=known,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout.strip()

    return call


@pytest.mark.parametrize(("extra", "folder"), [("gpu", ".venv-gpu"), ("dev", ".venv"), ("cpu", ".venv")])
def test_what_vllm_pins_goes_into_an_environment_of_its_own(setup, tmp_path, extra, folder):
    assert setup("--where", extra) == (0, folder)
    assert setup("--where", extra, VERL_STEER_VENV="mine") == (0, "mine")
    assert setup(extra) == (0, "") and (tmp_path / folder / f".verl_steer-{extra}").is_file()


@pytest.mark.parametrize(("extra", "status"), [("dev", 1), ("cpu", 1), ("cpu,synth", 1), ("synth", 0)])
def test_an_environment_that_holds_vllm_keeps_its_torch(setup, tmp_path, extra, status):
    (tmp_path / ".venv" / ".verl_steer-gpu").touch()
    found, said = setup(extra)
    assert found == status and (not status or (".venv holds vLLM" in said and "VERL_STEER_VENV" in said))
    assert (tmp_path / ".venv" / f".verl_steer-{extra}").exists() == (not status)


def test_the_scripts_that_install_for_a_gpu_ask_where():
    for script in ("examples/quickstart.sh", "benchmarks/gpu.sh"):
        text = (ROOT / script).read_text()
        assert 'setup.sh --where "$extra"' in text and "-.venv}" not in text


@pytest.mark.parametrize("script", ["three_stages.sh", "build_data.sh"])
def test_an_example_installs_what_it_looks_for_and_what_its_pipeline_needs(script):
    """Near duplicates need datasketch, which stands in an extra of its own: without it every role is played, and then nothing is selected."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "examples" / script).read_text()
    wanted = re.search(r"-c 'import ([\w, ]+)'", text)[1].split(", ")
    extras = re.search(r"(?:setup\.sh|extra=)\s*((?:\w+,)+\w+)", text)[1].split(",")
    given = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    installed = {re.match(r"[\w-]+", requirement)[0] for requirement in given}
    assert "datasketch" in wanted and set(wanted) <= installed
