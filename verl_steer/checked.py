"""A plain mapping -> frozen dataclasses, with every key and value checked.

The machinery under `config.py`: it knows how to say what is wrong (which key, which value, the nearest
right one) and nothing of what the keys mean. Types are read from the dataclasses' own annotations, so a
field is declared once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

T = TypeVar("T")


class ConfigError(ValueError):
    """A key or value is wrong; the message names it and the nearest right one."""


def parse(cls: type[T], mapping: Any, path: str) -> T:
    """Builds a dataclass from a mapping.

    A field whose name ends in `_` (because the bare word is Python's) has the key without it. `null` is None where
    the field may be None, and takes the default elsewhere; a zero, an empty string and `false` are values like any other.

    Args:
        cls: A dataclass whose fields are int, float, bool, str, tuples of str or float, mappings (taken as they are),
            or such dataclasses, each of them optionally `| None`.
        mapping: What was written, as plain data.
        path: Dotted name of the node, for messages.

    Raises:
        ConfigError: A key is unknown, a value has the wrong type, or the dataclass refuses it.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path} must be a mapping, got {mapping!r}")
    hints = get_type_hints(cls)
    keys = {f.name.rstrip("_"): f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in keys:
            raise ConfigError(f"{path}.{key} is not a known key{nearest(str(key), keys)}")
        name = keys[key]
        if value is not None:
            values[name] = _value(f"{path}.{key}", value, hints[name])
        elif NoneType in get_args(hints[name]):
            values[name] = None
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _value(where: str, value: Any, hint: Any) -> Any:
    declared = next(h for h in get_args(hint) if h is not NoneType) if NoneType in get_args(hint) else hint
    if dataclasses.is_dataclass(declared):
        return parse(declared, value, where)  # type: ignore[arg-type]
    if get_origin(declared) is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where}={value!r}: must be a mapping with names as keys")
        return dict(value)
    if get_origin(declared) is tuple:
        if get_args(declared)[0] is float:
            return _numbers(where, value)
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise ConfigError(f"{where}={value!r}: must be a string or a list of strings")
        return tuple(items)
    accepted = (int, float) if declared is float else declared
    if not isinstance(value, accepted) or (isinstance(value, bool) and declared is not bool):
        raise ConfigError(f"{where}={value!r}: must be {declared.__name__}")
    return float(value) if declared is float else value


def _numbers(where: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or not all(type(item) in (int, float) for item in value):
        raise ConfigError(f"{where}={value!r}: must be a list of numbers")
    return tuple(map(float, value))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or the known names if none is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def one_of(where: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        close = difflib.get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{where}={value!r} is not one of {', '.join(allowed)}{hint}")


def not_negative(where: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and at least 0."""
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{where}={value}: must be finite and not negative")


def positive(where: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and above 0."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{where}={value}: must be positive and finite")


def fraction(where: str, value: float) -> None:
    """Raises ConfigError unless `value` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{where}={value}: must be in [0, 1]")


def variable_name(where: str, value: str | None) -> None:
    """Raises ConfigError unless `value` is None or can be the name of an environment variable."""
    # The value is never repeated in the message: who gets this wrong has probably pasted the secret itself.
    if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ConfigError(f"{where} must be the NAME of an environment variable (letters, digits, _), not a secret")


def url_flaw(url: str) -> str | None:
    """Says why `url` cannot be a server's base URL, or None; a secret in it is never repeated."""
    # Whatever else is wrong, behind one of these signs, or before the first, a secret may stand.
    secretive = any(sign in url for sign in "@?#")
    unquoted = "a URL (not shown: it may hold a secret) holds something that is no address; write http://HOST:PORT/v1 and give the key by api_key_env"
    try:
        parsed = urlsplit(url)
        host, _ = parsed.hostname, parsed.port
    except ValueError as error:  # what urllib says of a bad port quotes it, and a password looks like one
        return unquoted if secretive else f"{url!r} is no URL ({error})"
    if parsed.scheme not in ("http", "https") or not host or re.search(r"\s", url):
        return unquoted if secretive else f"{url!r} is no http(s) URL"
    # Also an empty query or fragment: a path goes behind it, and nothing behind # ever leaves the client.
    if parsed.username is not None or parsed.password is not None or "?" in url or "#" in url:
        return f"the URL for {host} holds a user name, password, query or fragment; give the key by api_key_env"
    return None


def http_urls(where: str, urls: Iterable[str]) -> None:
    """Raises ConfigError unless each of `urls` can be a server's base URL."""
    for url in urls:
        flaw = url_flaw(url)
        if flaw is not None:
            raise ConfigError(f"{where}: {flaw}")
