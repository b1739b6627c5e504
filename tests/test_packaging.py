"""The distribution holds what the tree holds."""

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


def test_hydra_plugins_stays_a_namespace_package():
    assert not (ROOT / "hydra_plugins" / "__init__.py").exists()
