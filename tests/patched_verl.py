"""Copies of the pinned verl that carry patches of `patches/`, applied by `git am` as a maintainer would.

`python tests/patched_verl.py FOLDER [NAME ...]` makes one by hand: FOLDER/verl with the named patches, or
with all of them. A process with FOLDER on its PYTHONPATH then runs that verl instead of the installed one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATCHES = ROOT / "patches"


def names() -> list[str]:
    """Of all patches, in the order in which `git am patches/*.patch` applies them."""
    return sorted(path.stem for path in PATCHES.glob("*.patch"))


def wheel() -> Path:
    """The installed verl, whatever PYTHONPATH says.

    Raises:
        RuntimeError: A source file differs from the one that the wheel brought.
    """
    verl = distribution("verl")
    for file in verl.files or ():
        if file.parts[0] == "verl" and file.suffix == ".py" and file.hash is not None:
            digest = hashlib.new(file.hash.mode, Path(file.locate()).read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                raise RuntimeError(
                    f"{file.locate()} was edited; reinstall verl {verl.version}: patches are made against the wheel"
                )
    return Path(str(verl.locate_file("verl")))


def unpatched(folder: Path) -> Path:
    """A fresh copy of the wheel's verl in a repository of its own: the base of `patched`."""
    shutil.copytree(wheel(), folder / "verl")
    git(folder, "init", "--quiet")
    # The reflog is the one file of .git that is appended to in place; `patched` shares files by hard links.
    git(folder, "config", "core.logAllRefUpdates", "false")
    (folder / ".git" / "info" / "exclude").write_text("__pycache__/\n")
    git(folder, "add", "verl")
    git(folder, "commit", "--quiet", "--message", "verl as in the wheel")
    return folder


def patched(base: Path, folder: Path, patches: Sequence[str]) -> Path:
    """A copy of `base` on which the named patches were applied in this order.

    Args:
        base: From `unpatched`.
        folder: To be made, on the same file system.
        patches: Stems of files in `patches/`.

    Raises:
        RuntimeError: git could not apply one.
    """
    # Hard links: git and Python replace files, they do not write into them.
    shutil.copytree(base, folder, copy_function=os.link)
    git(folder, "am", "--quiet", "--keep-non-patch", *(str(PATCHES / f"{name}.patch") for name in patches))
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Runs git there, with no configuration but its own; returns what it printed.

    Raises:
        RuntimeError: It failed; the message is git's.
    """
    who = {f"GIT_{role}_{part}": f"verl_steer{at}" for role in ("AUTHOR", "COMMITTER") for part, at in _IDENTITY}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    clean = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=kept | clean | who, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


_IDENTITY = (("NAME", ""), ("EMAIL", "@users.noreply.github.com"))


def main(arguments: Sequence[str]) -> None:
    """Makes a patched copy; see the module's docstring."""
    if not arguments:
        raise SystemExit("usage: python tests/patched_verl.py FOLDER [NAME ...]")
    folder, wanted = Path(arguments[0]), list(arguments[1:]) or names()
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        raise SystemExit(f"no such patch: {', '.join(unknown)}; there are {', '.join(names())}")
    unpatched(folder)
    git(folder, "am", "--quiet", "--keep-non-patch", *(str(PATCHES / f"{name}.patch") for name in wanted))
    print(f"{folder}/verl: {len(wanted)} patches applied")


if __name__ == "__main__":
    main(sys.argv[1:])
