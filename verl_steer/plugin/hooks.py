"""Post-import hooks: work is done when verl loads a module, not when verl is imported.

verl imports its plugins in every process of a job; importing what we extend there would cost each of
them seconds, and would bind verl's names before a workaround can replace them. So a callback waits
for a module and runs right after that module's code has run, before its importer sees it.

verl swallows a plugin's errors (verl/__init__.py:74, patches/loud-plugins.patch). Here they are printed,
kept in `failures` for preflight and doctor, and raised again.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

#: Tracebacks of everything that went wrong while the plugin hooked itself in.
failures: list[str] = []

_waiting: dict[str, list[Callable[[], None]]] = {}


def after_import(module: str, callback: Callable[[], None]) -> None:
    """Runs `callback` right after `module` has been loaded; at once if it is loaded already."""
    loaded = sys.modules.get(module)
    if loaded is not None and not _is_initialising(loaded):
        guard(f"after import of {module}", callback)
    else:
        _waiting.setdefault(module, []).append(callback)


def guard(name: str, work: Callable[[], None]) -> None:
    """Runs `work`; a failure is printed, remembered and raised again."""
    try:
        work()
    except Exception:
        failures.append(f"{name}:\n{traceback.format_exc()}")
        sys.stderr.write(f"verl_steer: {failures[-1]}\n")
        raise


def _is_initialising(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of a module that somebody waits for; finds nothing itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, fullname)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """The real loader, and our callbacks after `exec_module`."""

    def __init__(self, loader: Any, module: str) -> None:
        self._loader = loader
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its real loader: resources and pickling look for it.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for callback in _waiting.pop(self._module, []):
            guard(f"after import of {self._module}", callback)


sys.meta_path.insert(0, _Finder())
