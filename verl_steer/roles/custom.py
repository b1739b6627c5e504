"""A tutor of the user's own: any class with the methods of `roles.tutor.Tutor`, named in the configuration.

The loop cannot tell it from ours, so another environment (a game, a simulator, a service with another protocol)
needs no other loop: it reads the history, judges the last reply, and may write the next question.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from verl_steer.checked import ConfigError, nearest
from verl_steer.config import CustomConfig
from verl_steer.roles.tutor import Tutor

_KEY = "steer.tutor.custom"


def load_tutor_class(config: CustomConfig) -> Callable[..., Tutor]:
    """The class that `steer.tutor.custom` names.

    Raises:
        ConfigError: Its module or file cannot be imported, has no such class, or the class is no tutor.
    """
    module = _module(config.path)
    found = getattr(module, config.name, None)
    if not inspect.isclass(found):
        classes = [name for name, _ in inspect.getmembers(module, inspect.isclass)]
        raise ConfigError(f"{_KEY}.name: {config.path} has no class {config.name!r}{nearest(config.name, classes)}")
    lacking = [name for name in ("assess", "aclose") if not inspect.iscoroutinefunction(getattr(found, name, None))]
    if lacking:
        raise ConfigError(
            f"{_KEY}.name: {config.name} lacks `async def {'` and `async def '.join(lacking)}`; see Tutor in verl_steer/roles/tutor.py"
        )
    return found


def build_custom(config: CustomConfig, max_concurrency: int) -> Tutor:
    """The tutor itself.

    Args:
        config: `steer.tutor.custom`.
        max_concurrency: This process's share of the job's limit, which the tutor keeps to itself.

    Raises:
        ConfigError: As `load_tutor_class`, or the constructor does not take `max_concurrency` and these kwargs.
    """
    cls = load_tutor_class(config)
    try:
        inspect.signature(cls).bind(max_concurrency=max_concurrency, **config.kwargs)
    except TypeError as error:
        raise ConfigError(
            f"{_KEY}.kwargs: {config.name}(max_concurrency=..., {', '.join(f'{k}=...' for k in config.kwargs)}) does not fit "
            f"its constructor: {error}"
        ) from error
    return cls(max_concurrency=max_concurrency, **config.kwargs)


def _module(path: str) -> ModuleType:
    if path.startswith("pkg://"):
        try:
            return importlib.import_module(path.removeprefix("pkg://"))
        except Exception as error:  # whatever a module of the user's raises
            raise _not_imported(path, error) from error
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"{_KEY}.path={path}: there is no file {file}; a module is written pkg://package.module")
    name = f"steer_custom_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{_KEY}.path={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)  # half a module would be found there
        raise _not_imported(path, error) from error
    return module


def _not_imported(path: str, error: Exception) -> ConfigError:
    hint = "; is it installed, or on PYTHONPATH?" if isinstance(error, ImportError) else ""
    return ConfigError(f"{_KEY}.path={path}: {type(error).__name__}: {error}{hint}")
