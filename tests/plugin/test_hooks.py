"""Post-import hooks run after the module, before its importer, and are loud."""

import sys

import pytest

from verl_steer.plugin import hooks


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module nobody has imported yet."""
    name = "steer_hook_target"
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hooks, "failures", [])
    yield name
    sys.modules.pop(name, None)


def test_a_callback_waits_for_the_module_and_sees_it_loaded(module):
    seen = []
    hooks.after_import(module, lambda: seen.append(sys.modules[module].value))
    assert seen == []
    target = __import__(module)
    assert seen == [1] and target.__spec__.loader is target.__loader__


def test_a_module_that_is_loaded_already_is_served_at_once(module):
    __import__(module)
    seen = []
    hooks.after_import(module, lambda: seen.append(True))
    assert seen == [True]


def test_a_callback_may_replace_a_name_before_the_importer_binds_it(module):
    hooks.after_import(module, lambda: setattr(sys.modules[module], "value", 2))
    namespace = {}
    exec(f"from {module} import value", namespace)
    assert namespace["value"] == 2


def test_a_failing_callback_is_printed_remembered_and_raised(module, capsys):
    def fail():
        raise RuntimeError("no such seam")

    hooks.after_import(module, fail)
    with pytest.raises(RuntimeError, match="no such seam"):
        __import__(module)
    assert "no such seam" in capsys.readouterr().err
    assert len(hooks.failures) == 1 and "test_hooks.py" in hooks.failures[0]
