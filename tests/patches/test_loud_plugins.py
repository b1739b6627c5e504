"""patches/loud-plugins.patch"""

import importlib
import logging

import pytest


@pytest.mark.unpatched("no error names the plugin 'broken'")
def test_a_plugin_that_does_not_load_is_an_error_with_its_traceback(tmp_path, monkeypatch, caplog):
    import verl

    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[verl.plugins]\nbroken = broken_plugin\n")
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no such device')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "broken")
    with caplog.at_level(logging.DEBUG, logger="verl"):
        importlib.reload(verl)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert ["'broken'" in record.getMessage() for record in errors] == [True], "no error names the plugin 'broken'"
    assert "no such device" in str(errors[0].exc_info[1])
