"""Every patch applies by `git am`, alone and with all others, and its test fails without it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from email import message_from_bytes, policy
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import patched_verl
import pytest

HERE = Path(__file__).parent
NAMES = patched_verl.names()
CPU_SUITE = (
    "tests/plugin/test_compat.py",
    "tests/plugin/test_stands_aside.py",
    "tests/plugin/test_advantage.py",
    "tests/plugin/test_output.py",
)


def test_file(name: str) -> str:
    """The test of a patch, relative to the repository."""
    return f"tests/patches/test_{name.replace('-', '_')}.py"


test_file.__test__ = False  # type: ignore[attr-defined]


class Bench:
    """Copies of verl, and the process that runs tests against them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = patched_verl.unpatched(folder / "unpatched")
        self._copies: dict[tuple[str, ...], Path] = {(): self.base}
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(patched_verl.ROOT), str(patched_verl.ROOT / "tests")]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VERL_STEER_DEVICE": "cpu",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "runner.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def copy(self, *names: str) -> Path:
        """A fresh copy of verl with these patches, made once."""
        if names not in self._copies:
            stem = names[0] if len(names) == 1 else "all"
            self._copies[names] = patched_verl.patched(self.base, self.folder / stem, names)
        return self._copies[names]

    def run(self, verl: Path, files: list[str], plugin: bool = False) -> dict[str, dict[str, Any]]:
        """Runs test files in a new process against one copy; the plugin and its workarounds only if asked for.

        Returns:
            Outcome, message and expected failure of each test, by name.
        """
        log = self.folder / "output.txt"
        job = {
            "root": str(patched_verl.ROOT),
            "verl": str(verl),
            "files": files,
            "options": [f"--basetemp={self.folder / 'tests'}"],
            "log": str(log),
            "environment": {
                "VERL_STEER_PATCH_TEST": "1",
                "VERL_USE_EXTERNAL_PLUGINS": "auto" if plugin else "none",
            }
            | ({"VERL_STEER_PATCHED_VERL": str(verl)} if plugin else {}),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "runner.py ended; see its output above"
        result = json.loads(answer)
        assert "error" not in result, result["error"]
        assert result["tests"], f"no test ran: {log.read_text()[-3000:]}"
        assert result["verl"] == str(verl / "verl" / "__init__.py"), "the tests ran another verl"
        tests: dict[str, dict[str, Any]] = result["tests"]
        return tests

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def unpatched(bench: Bench) -> dict[str, dict[str, Any]]:
    """Every patch's test under unmodified verl, in one process."""
    return bench.run(bench.copy(), [test_file(name) for name in NAMES])


def assert_passed(tests: dict[str, dict[str, Any]]) -> None:
    # One is skipped where flash-attn is installed: its fault is not there.
    good = ("passed", "skipped in setup")
    failed = {name: t["message"] for name, t in tests.items() if t["outcome"] not in good}
    assert not failed, "\n".join(f"{name}: {message[:1500]}" for name, message in failed.items())


def assert_shows_the_fault(name: str, test: dict[str, Any]) -> None:
    """Fails as its mark says, or passes if it has none."""
    if test["fails_with"] is None:
        assert test["outcome"] == "passed", f"{name} should not need the patch: {test['message']}"
        return
    if test["outcome"] == "skipped in setup":
        return
    assert test["outcome"] == "failed", f"{name} {test['outcome']} on unmodified verl"
    assert re.search(test["fails_with"], test["message"], re.DOTALL), (
        f"{name} failed with other words: {test['message']}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_is_a_pull_request_that_applies_to_the_wheel_alone(name: str, bench: Bench) -> None:
    text = (patched_verl.PATCHES / f"{name}.patch").read_bytes()
    mail = message_from_bytes(text, policy=policy.default)
    assert mail["From"] == "verl_steer <verl-steer@users.noreply.github.com>"
    for part in ("Problem:", "Cause:", "Fix:", "How tested:"):
        assert part.encode() in text, f"the text says no {part}"
    copy = bench.copy(name)
    # `git am` reads a long subject from several lines.
    subject = patched_verl.git(copy, "log", "--format=%s", "-1").strip()
    assert re.match(r"\[\w+\] (fix|feat): \w", subject)
    changed = patched_verl.git(copy, "diff", "--name-only", "HEAD~1").split()
    assert changed and all(path.startswith("verl/") for path in changed)


@pytest.mark.parametrize("name", NAMES)
def test_its_test_fails_on_unmodified_verl_and_passes_with_it_alone(
    name: str, bench: Bench, unpatched: dict[str, dict[str, Any]]
) -> None:
    alone = bench.run(bench.copy(name), [test_file(name)])
    assert_passed(alone)
    assert any(test["fails_with"] for test in alone.values()), "no test of this file shows the fault"
    for test in alone:
        assert_shows_the_fault(test, unpatched[test])


def test_all_patches_together_pass_all_their_tests(bench: Bench) -> None:
    tests = bench.run(bench.copy(*NAMES), [test_file(name) for name in NAMES])
    assert_passed(tests)


def test_no_two_tests_share_a_name(unpatched: dict[str, dict[str, Any]]) -> None:
    # Outcomes are kept by name.
    names = re.findall(r"^def (test_\w+)", "".join((patched_verl.ROOT / test_file(n)).read_text() for n in NAMES), re.M)
    assert len(names) == len(set(names))


def test_the_plugin_works_on_a_verl_that_needs_no_workaround(bench: Bench) -> None:
    assert_passed(bench.run(bench.copy(*NAMES), list(CPU_SUITE), plugin=True))


def test_the_readme_lists_every_patch_with_its_test_and_its_status() -> None:
    text = (patched_verl.PATCHES / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\(\.\./(tests/patches/\w+\.py)\) \| \w[^|]+ \|$", text, re.MULTILINE))
    assert rows == {name: test_file(name) for name in NAMES}
    assert all((patched_verl.ROOT / path).is_file() for path in rows.values())


def test_a_name_that_no_patch_has_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such patch: louder-plugins; there are .*loud-plugins"):
        patched_verl.main([str(tmp_path / "copy"), "louder-plugins"])
    assert not (tmp_path / "copy").exists()


def test_an_edited_installation_is_not_taken_for_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, edited = tmp_path / "wheel", tmp_path / "site-packages"
    for folder in (wheel, edited):
        (folder / "verl").mkdir(parents=True)
        (folder / "verl" / "__init__.py").write_text("VERSION = 1\n")
        digest = urlsafe_b64encode(hashlib.sha256(b"VERSION = 1\n").digest()).rstrip(b"=").decode()
        info = folder / "verl-0.9.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.9.1\n")
        (info / "RECORD").write_text(f"verl/__init__.py,sha256={digest},12\n")
    (edited / "verl" / "__init__.py").write_text("VERSION = 2\n")
    found = {folder: Distribution.at(folder / "verl-0.9.1.dist-info") for folder in (wheel, edited)}
    monkeypatch.setattr(patched_verl, "distribution", lambda name: found[wheel])
    assert patched_verl.wheel() == wheel / "verl"
    monkeypatch.setattr(patched_verl, "distribution", lambda name: found[edited])
    with pytest.raises(RuntimeError, match="was edited; reinstall verl"):
        patched_verl.wheel()
