"""Makes torchvision importable where its compiled part does not fit the installed torch.

The torchvision wheel on PyPI is built against CUDA. On a CPU build of torch its compiled library
does not load, and `import torchvision` dies with "operator torchvision::nms does not exist",
although neither transformers' video processors nor qwen_vl_utils ever call that operator. Declaring
the two missing names is enough. Nothing happens where torchvision imports by itself.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_libraries: list[Any] = []  # a torch.library.Library undoes its definitions when it is collected


def install() -> None:
    """From now on `import torchvision`, by whomever, works; imports nothing itself."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def ensure_torchvision() -> None:
    """Imports torchvision, declaring its missing operators first if it asks for them.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        RuntimeError: It fails for another reason; the original error.
    """
    install()
    importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps torchvision's loader; finds nothing itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None and spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                    return spec
        return None


class _Loader(importlib.abc.Loader):
    """Runs torchvision's module a second time, with the operators declared, if the first run misses them."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

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
        try:
            self._loader.exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error) or _libraries:
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            _declare_operators()
            self._loader.exec_module(module)
