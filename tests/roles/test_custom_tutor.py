"""A tutor class of the user's own, named in the configuration."""

import sys

import pytest

from verl_steer.config import ConfigError, SteerConfig
from verl_steer.roles.build import build_tutor

GOOD = """
from verl_steer.roles.tutor import Assessment
from verl_steer.scores import Outcome, TutorScores, Verdict


class Kind:
    def __init__(self, max_concurrency: int, score: int = 9) -> None:
        self.max_concurrency, self.score = max_concurrency, score

    async def assess(self, request):
        return Assessment(Verdict(Outcome.OK, TutorScores(self.score, self.score, self.score)))

    async def aclose(self):
        self.closed = True


class Mute:
    async def aclose(self):
        pass


class Blocking:
    def assess(self, request):
        return None

    async def aclose(self):
        pass
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_tutor.py"
    path.write_text(GOOD)
    return path


def tutor(path, name="Kind", max_concurrency=3, **kwargs):
    node = {"kind": "custom", "custom": {"path": str(path), "name": name, "kwargs": kwargs}}
    return build_tutor(SteerConfig.from_mapping({"tutor": node}).tutor, max_concurrency)


async def test_it_is_built_from_a_file_with_its_share_of_the_limit_and_its_settings(file):
    built = tutor(file, score=7)
    assert (built.max_concurrency, built.score) == (3, 7)
    assert (await built.assess(None)).verdict.scores.safety == 7
    await built.aclose()
    assert built.closed


def test_it_is_built_from_an_installed_module(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    assert tutor("pkg://my_tutor").score == 9


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Kin", "has no class 'Kin'; did you mean Kind?"),
        ("GOOD", "has no class 'GOOD'"),
        ("Mute", "Mute lacks `async def assess`"),
        ("Blocking", "Blocking lacks `async def assess`"),
    ],
)
def test_a_class_that_is_none_or_no_tutor_is_named(file, name, says):
    with pytest.raises(ConfigError) as caught:
        tutor(file, name)
    assert says in str(caught.value) and "steer.tutor.custom.name" in str(caught.value)


def test_settings_that_its_constructor_does_not_take_are_named(file):
    with pytest.raises(
        ConfigError, match=r"steer.tutor.custom.kwargs: Kind\(max_concurrency=..., scroe=...\) does not fit"
    ):
        tutor(file, scroe=7)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("pkg://no_such_package.tutor", "No module named 'no_such_package'; is it installed, or on PYTHONPATH"),
        ("no/such/file.py", "there is no file .*no/such/file.py; a module is written pkg://package.module"),
    ],
)
def test_a_module_that_is_not_there_is_named(path, says):
    with pytest.raises(ConfigError, match=says):
        tutor(path)


def test_a_file_that_is_no_python_is_named(tmp_path):
    (tmp_path / "tutor.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match="not a Python file"):
        tutor(tmp_path / "tutor.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'; is it installed, or on"),
        ("def (", r"SyntaxError: invalid syntax \(broken_tutor.py, line 1\)"),
        ("1 / 0", "ZeroDivisionError: division by zero$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_its_error(tmp_path, monkeypatch, text, says):
    file = tmp_path / "broken_tutor.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for path in (str(file), "pkg://broken_tutor"):
        with pytest.raises(ConfigError, match=f"steer.tutor.custom.path={path}: {says}"):
            tutor(path)
    assert not [name for name in sys.modules if name.endswith("broken_tutor")], "no half-made module is left"
