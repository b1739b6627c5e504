"""The versions this plugin was tried with; `doctor` shows them, the plugin refuses to work outside."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

SUPPORTED = {
    "verl": SpecifierSet("==0.9.1"),
    "transformers": SpecifierSet(">=5.5.3,!=5.6.0,<5.11"),
}


class UnsupportedVersionError(RuntimeError):
    """An installed package is outside the supported range."""


def installed(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_versions() -> None:
    """Raises:
    UnsupportedVersionError: A package is missing or outside `SUPPORTED`.
    """
    for package, specifier in SUPPORTED.items():
        found = installed(package)
        if found is None or not specifier.contains(found, prereleases=True):
            raise UnsupportedVersionError(
                f"verl_steer supports {package}{specifier}, found {found or 'none'}; "
                f'run: pip install "{package}{specifier}"'
            )
