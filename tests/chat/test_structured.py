"""A reply is one JSON object with exactly the asked keys and types, or it is an error."""

import json
from typing import Literal

import pytest

from verl_steer.chat.structured import (
    Dialect,
    ReplyError,
    StrictReply,
    dialects,
    parse_reply,
    request_fields,
    schema_of,
)


class Review(StrictReply):
    """A reply with one of each type."""

    reason: str
    score: int
    move: Literal["a", "b"]
    title: str | None


GOOD = {"reason": "why", "score": 3, "move": "a", "title": None}
TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "text", [TEXT, f"\n  {TEXT} \n", f"```json\n{TEXT}\n```", f"```\n{TEXT}```", f" ```json\n{TEXT}\n``` "]
)
def test_an_object_alone_or_in_one_fence_is_read(text):
    assert parse_reply(text, Review) == Review(**GOOD)


def changed(**values):
    return json.dumps({**GOOD, **values})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        (f"Sure: {TEXT}", "nothing else"),
        (f"{TEXT} done", "nothing else"),
        (f"{TEXT}{TEXT}", "nothing else"),
        (f"```json\n{TEXT}\n``` ok", "nothing else"),
        (f"```json\n{TEXT}\n```\n```json\n{TEXT}\n```", "nothing else"),
        (TEXT[:-5], "nothing else"),
        (f"[{TEXT}]", "JSON object, not list"),
        ("3", "JSON object, not int"),
        ("null", "JSON object, not NoneType"),
        (TEXT[:-1] + ', "score": 3}', "'score' occurs twice"),
        (changed(reason="x").replace('"x"', '{"k": 1, "k": 2}'), "'k' occurs twice"),
        (TEXT.replace("3", "NaN"), "NaN is not JSON"),
        (TEXT.replace("3", "-Infinity"), "-Infinity is not JSON"),
        (TEXT.replace("3", "9" * 5000), "nothing else"),
        ("[" * 100_000, "nested too deeply"),
        (changed(score="3"), "score"),
        (changed(score=3.0), "score"),
        (changed(score=True), "score"),
        (changed(score=None), "score"),
        (changed(reason=1), "reason"),
        (changed(move="c"), "move"),
        (changed(overall=1), "overall"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "title"}), "title"),
        (TEXT.replace("why", "\\ud800"), "other half"),
    ],
)
def test_anything_else_is_an_error_that_says_what(text, says):
    with pytest.raises(ReplyError, match=says):
        parse_reply(text, Review)


def test_an_error_does_not_quote_the_whole_reply():
    with pytest.raises(ReplyError) as raised:
        parse_reply(changed(score="x" * 10_000, move="y" * 10_000), Review)
    assert len(str(raised.value)) <= 400


def test_the_schema_allows_no_other_keys_and_keeps_a_property_named_title():
    schema = schema_of(Review)
    assert schema.name == "review"
    assert list(schema.schema["properties"]) == ["reason", "score", "move", "title"]
    assert schema.schema["required"] == ["reason", "score", "move", "title"]
    assert schema.schema["additionalProperties"] is False
    assert "description" not in json.dumps(schema.schema)


def test_each_dialect_sends_its_fields_and_guided_json_never_stands_alone():
    schema = schema_of(Review)
    sent = {dialect: request_fields(dialect, schema) for dialect in Dialect}
    assert {dialect: set(fields) for dialect, fields in sent.items()} == {
        Dialect.RESPONSE_FORMAT: {"response_format"},
        Dialect.STRUCTURED_OUTPUTS: {"structured_outputs"},
        Dialect.GUIDED_JSON: {"guided_json", "response_format"},
        Dialect.NONE: set(),
    }
    assert sent[Dialect.RESPONSE_FORMAT]["response_format"]["json_schema"]["schema"] == schema.schema
    assert sent[Dialect.STRUCTURED_OUTPUTS]["structured_outputs"] == {"json": schema.schema}


def test_an_unknown_setting_names_the_known_ones():
    assert dialects("auto") == (Dialect.RESPONSE_FORMAT, Dialect.STRUCTURED_OUTPUTS, Dialect.NONE)
    assert dialects("guided_json") == (Dialect.GUIDED_JSON,)
    with pytest.raises(ValueError, match="auto, response_format, structured_outputs"):
        dialects("json")
