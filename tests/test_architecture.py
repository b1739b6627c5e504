"""Arrows point inwards: what may import what, asked of the interpreter and of the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import verl_steer

ROOT = Path(verl_steer.__file__).parent
PURE = (
    "dialogue",
    "scores",
    "shaping",
    "tcsr",
    "credit",
    "checked",
    "config",
    "config_sft",
    "records",
    "summary",
    "yoke",
    "whole",
)
CORE = (*PURE, "cli", "curves", "chat", "roles", "data", "synthesis", "bench", "stages")
HEAVY = {"torch", "ray", "verl", "transformers", "vllm"}


def modules_of(room: str) -> list[str]:
    """The dotted names of a room's modules."""
    if (ROOT / f"{room}.py").is_file():
        return [f"verl_steer.{room}"]
    paths = sorted((ROOT / room).rglob("*.py"))
    assert paths, f"there is no room {room}"
    names = [".".join(("verl_steer", *p.relative_to(ROOT).with_suffix("").parts)) for p in paths]
    return [name.removesuffix(".__init__") for name in names]


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*, outside: str) -> list[Path]:
    """All source files that do not lie in the room `outside`."""
    return [p for p in sorted(ROOT.rglob("*.py")) if p.relative_to(ROOT).parts[0] != outside]


@pytest.mark.parametrize("room", CORE)
def test_importing_a_core_room_loads_nothing_heavy(room):
    program = (
        "import importlib, sys\n"
        f"for name in {modules_of(room)!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_only_the_plugin_imports_verl():
    guilty = {
        str(p.relative_to(ROOT))
        for p in files(outside="plugin")
        if any(n.split(".")[0] == "verl" for n in imports_of(p))
    }
    assert not guilty


def test_nothing_imports_the_plugin_but_the_command_line():
    guilty = {
        str(p.relative_to(ROOT))
        for p in files(outside="plugin")
        if any(n.startswith("verl_steer.plugin") for n in imports_of(p))
    }
    # `verl-steer doctor` asks the plugin, inside the function that runs it.
    assert guilty <= {"cli.py"}


def test_the_micro_world_is_reached_by_name_only():
    outside = [p for p in files(outside="microworld") if p.relative_to(ROOT).parts[0] != "plugin"]
    guilty = {
        str(p.relative_to(ROOT)) for p in outside if any(n.startswith("verl_steer.microworld") for n in imports_of(p))
    }
    assert not guilty


def test_the_pure_core_does_not_know_the_rooms_around_it():
    around = ("chat", "roles", "data", "synthesis", "bench", "stages", "testing", "cli", "curves")
    for room in PURE:
        # The typed outcome of a model call is a word that both share.
        names = {n for n in imports_of(ROOT / f"{room}.py") if not n.startswith("verl_steer.chat.outcome")}
        reached = {n for n in names if n.startswith(tuple(f"verl_steer.{a}" for a in around))}
        assert not reached, f"{room} imports {reached}"


def test_the_bench_and_its_judge_neither_import_nor_load_the_tutor_s_scoring():
    """No import of it anywhere in their code, and none by way of others when they are loaded."""
    scoring = [
        f"verl_steer.{name}" for name in ("tcsr", "shaping", "credit", "roles.tutor_reply", "roles.endpoint_tutor")
    ]
    # The page of training records shows what the tutor said; it scores nothing and no figure of the bench comes from it.
    names = [name for name in modules_of("bench") if not name.endswith(".records_report")]
    names += ["verl_steer.roles.judge", "verl_steer.roles.attacker"]
    for name in names:
        path = ROOT.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        reached = {n for n in imports_of(path) if n.startswith((*scoring, "verl_steer.scores"))}
        assert not reached, f"{name} imports {reached}"
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted({set(scoring)!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_chat_knows_neither_dialogues_nor_scores():
    for path in (ROOT / "chat").rglob("*.py"):
        ours = {n for n in imports_of(path) if n.startswith("verl_steer.")}
        # What an address may be is said once, for the chat's callers and for the configuration; likewise what no file can
        # hold, for replies and for records.
        ours -= {"verl_steer.checked.url_flaw", "verl_steer.whole.LONE_SURROGATE"}
        assert all(n.startswith("verl_steer.chat") for n in ours), f"{path.name} imports {ours}"
