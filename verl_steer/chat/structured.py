"""Structured replies: how servers are asked for them, and how a reply is read.

Servers differ in the field that takes a JSON schema, and some ignore a field they do not know without
saying so. So the request is a hint, never a guarantee: every reply is read strictly, whatever was asked.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from verl_steer.whole import LONE_SURROGATE


class StrictReply(BaseModel):
    """Base of every reply that a model writes: no coerced types, no unknown keys, here and in the schema."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


T = TypeVar("T", bound=StrictReply)

_FENCE = re.compile(r"\A```(?:json|JSON)?[ \t]*\n(?P<body>.*)\n?```\Z", re.S)
_JSON_SPACE = " \t\r\n"  # str.strip() alone would also take no-break spaces and separators
_MAX_ERROR_CHARS = 400


class Dialect(StrEnum):
    """A way to ask for a reply that follows a JSON schema."""

    RESPONSE_FORMAT = "response_format"  # OpenAI, SGLang, vLLM
    STRUCTURED_OUTPUTS = "structured_outputs"  # vLLM >= 0.12
    GUIDED_JSON = "guided_json"  # vLLM before; newer ones ignore it silently, so response_format goes with it
    NONE = "none"


@dataclass(frozen=True)
class JsonSchema:
    """A named JSON schema.

    Attributes:
        name: Letters, digits, `_` and `-` (OpenAI's rule).
        schema: The schema.
    """

    name: str
    schema: dict[str, Any]


def dialects(setting: str) -> tuple[Dialect, ...]:
    """The dialects to try, in order, for a value of `structured_output`.

    Raises:
        ValueError: The setting is not one of auto, response_format, structured_outputs, guided_json, none.
    """
    if setting == "auto":
        return Dialect.RESPONSE_FORMAT, Dialect.STRUCTURED_OUTPUTS, Dialect.NONE
    try:
        return (Dialect(setting),)
    except ValueError:
        known = ", ".join(["auto", *Dialect])
        raise ValueError(f"structured_output={setting!r} is unknown; choose one of {known}") from None


def request_fields(dialect: Dialect, schema: JsonSchema) -> dict[str, Any]:
    """The fields that a request body gets."""
    as_format = {
        "type": "json_schema",
        "json_schema": {"name": schema.name, "schema": schema.schema, "strict": True},
    }
    match dialect:
        case Dialect.RESPONSE_FORMAT:
            return {"response_format": as_format}
        case Dialect.STRUCTURED_OUTPUTS:
            return {"structured_outputs": {"json": schema.schema}}
        case Dialect.GUIDED_JSON:
            return {"guided_json": schema.schema, "response_format": as_format}
        case Dialect.NONE:
            return {}


@functools.cache  # the same for every call, and not cheap
def schema_of(reply_type: type[StrictReply]) -> JsonSchema:
    """The JSON schema of a reply, without titles and prose: some servers compile every keyword they see."""
    schema = _bare(reply_type.model_json_schema())
    return JsonSchema(re.sub(r"(?<!^)(?=[A-Z])", "_", reply_type.__name__).lower(), schema)


class ReplyError(ValueError):
    """A reply is not what was asked for; the message is worded for the model that wrote it."""


def parse_reply(text: str, reply_type: type[T]) -> T:
    """Reads a model's reply: one JSON object, alone or in one ```json fence, and nothing else.

    No repairs, no search for braces in prose: text that a model quotes could otherwise become its verdict.

    Args:
        text: The reply.
        reply_type: The type to read; its validators may object too.

    Raises:
        ReplyError: Not JSON, duplicate keys, NaN or Infinity, wrong types, missing or unknown keys, or a
            validator of `reply_type` objects.
    """
    stripped = text.strip(_JSON_SPACE)
    if (in_fence := _FENCE.match(stripped)) is not None:
        stripped = in_fence["body"].strip(_JSON_SPACE)
    if not stripped:
        raise ReplyError("the reply is empty")
    try:
        value = json.loads(stripped, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        every_text = json.dumps(value, ensure_ascii=False)
    except ReplyError:
        raise
    except RecursionError:
        raise ReplyError("the JSON is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError; an integer of thousands of digits
        raise ReplyError(f"not one JSON object and nothing else: {str(error)[:_MAX_ERROR_CHARS]}") from None
    if not isinstance(value, dict):
        raise ReplyError(f"the reply must be a JSON object, not {type(value).__name__}")
    if LONE_SURROGATE.search(every_text):
        raise ReplyError("an escape \\ud800..\\udfff stands without its other half")
    try:
        return reply_type.model_validate(value)
    except ValidationError as error:
        raise ReplyError(_explain(error)) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ReplyError(f"the key {key[:40]!r} occurs twice")
        seen[key] = value
    return seen


def _no_constant(name: str) -> Any:
    raise ReplyError(f"{name} is not JSON")


def _explain(error: ValidationError) -> str:
    lines = [
        f"{'.'.join(str(p) for p in e['loc']) or 'the object'}: {e['msg']}"
        for e in error.errors(include_url=False, include_context=False, include_input=False)[:5]
    ]
    return "; ".join(lines)[:_MAX_ERROR_CHARS]


def _bare(node: Any) -> Any:
    """`node` without the keywords `title` and `description`; a property of that name stays."""
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    bare = {k: v for k, v in node.items() if not (k in ("title", "description") and isinstance(v, str))}
    return {k: _bare(v) for k, v in bare.items()}
