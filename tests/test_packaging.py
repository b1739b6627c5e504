"""The distribution holds what the tree holds."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_of_the_tree_is_listed():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "verl_steer").rglob("__init__.py")}
    found |= {
        "verl_steer." + ".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "recipes").rglob("__init__.py")
    }
    assert found | {"hydra_plugins", "hydra_plugins.verl_steer_searchpath"} == listed


def test_every_data_file_of_a_package_is_shipped():
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    for path in (ROOT / "verl_steer").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            patterns = shipped.get(package, [])
            assert any(path.match(pattern) for pattern in patterns), f"{path} would be missing from the wheel"


def test_no_message_sends_to_an_index_that_lacks_the_package():
    """It is in no index: `pip install "verl-steer[synth]"` fails, or fetches somebody else's."""
    told = [p for folder in ("verl_steer", "benchmarks", "recipes") for p in (ROOT / folder).rglob("*") if p.is_file()]
    wrong = [p for p in told if p.suffix in (".py", ".md", ".txt", ".sh") and 'install "verl-steer' in p.read_text()]
    assert not wrong
    extras = PROJECT["project"]["optional-dependencies"]
    used = {
        name for p in told if p.suffix == ".py" for name in re.findall(r"install_command\(.(\w+).\)", p.read_text())
    }
    assert {"synth", "bench", "gpu", "cpu"} <= used <= set(extras)


def test_hydra_plugins_stays_a_namespace_package():
    assert not (ROOT / "hydra_plugins" / "__init__.py").exists()
