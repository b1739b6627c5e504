"""What `benchmarks/learning.py` takes for finished, and what it says where nothing was trained."""

import json
from dataclasses import dataclass, field

import pytest

pytest.importorskip("verl")
import learning


@dataclass
class Commands:
    """In the place of `subprocess`: no run is started."""

    run_of: list = field(default_factory=list)
    STDOUT = -2

    def run(self, command, **options):
        self.run_of.append(command)
        raise RuntimeError("would train")


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.setattr(learning, "subprocess", found := Commands())
    return found


def test_a_finished_seed_is_taken_only_for_what_it_was_trained_with(tmp_path, monkeypatch, commands):
    folder = learning.folder_of(tmp_path, learning.asked(0, ["a=1"]))
    folder.mkdir()
    (folder / "probe.json").write_text(json.dumps({"seed": 0, "steps": 3}))
    assert learning.train_and_read(0, tmp_path, ["a=1"])["steps"] == 3 and not commands.run_of
    for change in ({"overrides": ["a=2"]}, {"VERSION": -1}, {"RECIPES": tmp_path}):
        overrides = change.pop("overrides", ["a=1"])
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="would train"):
            for name, value in change.items():
                patch.setattr(learning, name, value)
            learning.train_and_read(0, tmp_path, overrides)
    assert len(commands.run_of) == 3
    told = [json.loads(path.read_text()) for path in tmp_path.glob("seed0-*/asked.json")]
    assert {(tuple(run["overrides"]), run["world"]) for run in told} >= {(("a=2",), learning.VERSION), (("a=1",), -1)}


def test_without_training_it_speaks_of_the_probe_and_can_fail(capsys):
    others = [*learning.CONSTANTS, "expert without memory"]
    rows = {
        name: dict.fromkeys(("harmful", "benign", "twin_accuracy", "gap"), 0.05) for name in [*others, learning.EXPERT]
    }
    assert learning.report_probe(rows) == 1
    rows[learning.EXPERT]["twin_accuracy"] = 1.0
    assert learning.report_probe(rows) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["value"], last["ok"]) == (0.95, True) and "nothing trained" in last["name"]
    rows["comply"]["twin_accuracy"] = 0.2
    assert learning.report_probe(rows) == 1
