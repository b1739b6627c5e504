"""Requirements of an installed distribution, less some; and its name under an alias.

pip cannot leave single requirements out, and vLLM looks its own version up under a name that the CPU
build does not carry. setup.sh uses both commands.
"""

from __future__ import annotations

import argparse
import shutil
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements(distribution: str, without: list[str]) -> list[str]:
    """What `distribution` needs in this environment, its extras aside.

    Args:
        distribution: Name of an installed distribution.
        without: Names left out.
    """
    left_out = {canonicalize_name(name) for name in without}
    parsed = [Requirement(line) for line in metadata.requires(distribution) or []]
    here = [item for item in parsed if item.marker is None or item.marker.evaluate({"extra": ""})]
    kept = [item for item in here if canonicalize_name(item.name) not in left_out]
    for item in kept:
        item.marker = None
    return [str(item) for item in kept]


def publish_as(distribution: str, alias: str) -> Path:
    """Lets `importlib.metadata.version` answer for `alias` ("name==version") too; returns the folder.

    Only name and version are written: entry points stay with the real distribution.
    """
    name, version = alias.split("==")
    site = Path(str(metadata.distribution(distribution).locate_file("")))
    for old in site.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (folder / "INSTALLER").write_text("verl_steer tests/vllm_tier/setup.sh\n", encoding="utf-8")
    if metadata.version(name) != version:
        raise RuntimeError(f"{folder} was written, yet {name} is found as {metadata.version(name)}")
    return folder


def main() -> None:
    """Prints requirements, or writes the alias."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("distribution")
    parser.add_argument("--without", nargs="*", default=[], help="names of requirements to leave out")
    parser.add_argument("--publish-as", metavar="NAME==VERSION", help="write this alias instead of printing")
    arguments = parser.parse_args()
    if arguments.publish_as:
        publish_as(arguments.distribution, arguments.publish_as)
    else:
        print("\n".join(requirements(arguments.distribution, arguments.without)))


if __name__ == "__main__":
    main()
