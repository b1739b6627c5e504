"""How an optional part is installed, worded once: the package is in no index, so from the clone."""

from __future__ import annotations


def install_command(extra: str) -> str:
    """What installs an extra of pyproject.toml, for an error message.

    Args:
        extra: Its name, e.g. "synth".
    """
    return f'run pip install -e ".[{extra}]" in the clone of verl_steer'
