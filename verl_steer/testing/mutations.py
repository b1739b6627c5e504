"""Replies that are nearly right: seeded mutations of a valid reply, for testing whatever reads replies.

    for name, text in mutations(valid_replies, seed=1, n=100_000):
        ...  # read `text`; it must be refused, or be right by a judgement of your own

Some mutations keep a reply valid (white space, the order of keys, escapes, another legal number): a reader that
refuses everything must not pass for a strict one. Equal seeds give equal texts on every machine.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# fmt: off
_NUMBERS = [
    *"0 1 2 3 4 5 6 7 8 9 10 11 -1 -0 00 01 +5 5. .5 5.0 5e0 1e1 1E400 -1e999 0x5 0b1 5_0 ５ ٣ Ⅷ 5n NaN Infinity nan".split(),  # noqa: SIM905
    *("-Infinity", "null", "true", "false", '"5"', '"10"', "[5]", '{"v":5}', "[]", "{}", "'5'", "None", "True", "undefined"),
    *("9007199254740993", "18446744073709551616", "1e-400"),
]
_PROSE = [
    ("Here is my assessment:\n", ""), ("", "\nI hope this helps."), ("Sure! ", " Done."), ("<think>hm</think>", ""), ("`", "`"),
    ("# Verdict\n\n", "\n"), ("/* note */ ", ""), ("", " // note"), ("data: ", "\n\n"), ("JSON:", ""),
]
_FENCES = [
    ("```json\n", "\n```"), ("```\n", "\n```"), ("```JSON\n", "```"), ("```json  \n\n", "\n\n```\n"), ("```json", "```"),
    ("```json5\n", "\n```"), ("~~~json\n", "\n~~~"), ("````json\n", "\n````"), ("```json\n", ""), ("ok\n```json\n", "\n```"),
    ("```json\n", "\n```\nok"), ("```json\r\n", "\r\n```"), ("\ufeff```json\n", "\n```"),
]
_SPACES = [
    "", " ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\x0b", "\x0c", "\u2028", "\x1c", "\x85", "\x00", "\ufeff", "\u200b",
]
_ODD = [
    "\ud800", "\udfff", "\u202e", "\u0000", "\x1b[31m", "\u00e9", "e\u0301", "\u212a", "\uff02", "\u201c", "\u2019", "😀", "\\", '"',
    "\x7f",
]
_ESCAPES = [
    r"\u0041", r"\ud800", r"\udc00", r"\ud83d\ude00", r"\ude00\ud83d", r"\u0000", r"\x41", r"\u00g0", r"\'", r"\/", r"\u12", "\\",
]
_LOOKALIKES = [("a", "а"), ("e", "е"), ("s", "ѕ"), ("{", "｛"), (":", "："), ("1", "１"), ("8", "𝟖"), ("u", "υ")]
_WRONG_KEYS = ["overall", "", "__class__", "scores", "Safety", "safety ", "sаfety"]
_VALUES = ['""', '"x"', '"none"', '"deepen"', '"Deepen"', '"deepen "', "null", '{"a":null}', '"\\u0031"']
_BRACKETS = [("[", "]"), ('{"result": ', "}"), ("[[", "]]"), ('"', '"'), ('{"a":', ""), ("(", ")"), ("{", "}")]
_NOTHINGS = [
    "", " ", "null", "3", '"x"', "[]", "{}", "true", "\ufeff", "{}{}", "\x00", "```json\n```", "I cannot help with that.",
]
# fmt: on


def mutations(replies: Sequence[str], seed: int, n: int, echo: str = "") -> Iterator[tuple[str, str]]:
    """`n` pairs of (name of the mutation, text).

    Args:
        replies: Valid replies, each a flat JSON object; at least one.
        seed: Of all choices.
        n: How many.
        echo: Text that a model might copy into its reply, e.g. what it was asked to judge.
    """
    chance = random.Random(seed)
    for _ in range(n):
        # A few of them several times over: real faults come together.
        kinds = chance.choices(list(KINDS), k=1 if chance.random() < 0.8 else chance.randint(2, 3))
        text = chance.choice(replies)
        for kind in kinds:
            text = echo + text if kind == "echo" else KINDS[kind](text, chance)
        yield "+".join(kinds), text


def _bytes(text: str, chance: random.Random) -> str:
    """Edits bytes; what is no UTF-8 after it becomes what a lenient client would make of it."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data.insert(at, chance.randrange(256))
            case 1:
                del data[at : at + 1]
            case 2:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case _:
                data[at:at] = data[at : at + chance.randint(1, 20)]
    return data.decode("utf-8", chance.choice(["replace", "surrogateescape", "ignore"]))


def _characters(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 3)):
        at, new = chance.randrange(len(text) + 1), chance.choice([*string.punctuation, *_ODD, *_SPACES])
        text = text[:at] + new + text[at + chance.randrange(2) :]
    return text


def _number(text: str, chance: random.Random) -> str:
    return _swap_value(text, chance, lambda value: type(value) is int, chance.choice(_NUMBERS))


def _any_value(text: str, chance: random.Random) -> str:
    new = chance.choice([*_NUMBERS, *_VALUES])
    return _swap_value(text, chance, lambda value: True, new)


def _big(text: str, chance: random.Random) -> str:
    digits = chance.choice((19, 20, 300, 4299, 4300, 4301, 20_000))
    number = chance.choice(("", "-")) + "9" * digits + chance.choice(("", "", "e5", ".0"))
    return _swap_value(text, chance, lambda value: type(value) is int, number)


def _repeat(text: str, chance: random.Random) -> str:
    reply = _object(text)
    key = chance.choice(list(reply) or ["key"])
    spelled = chance.choice(
        [json.dumps(key), json.dumps(key)[:-1] + "\\u0000" + '"', f'"\\u{ord(key[:1] or "k"):04x}{key[1:]}"']
    )
    pair = f"{spelled}: {json.dumps(chance.choice([reply.get(key), 10, 1, None]))}"
    return "{" + pair + ", " + text.lstrip()[1:] if chance.random() < 0.5 else text.rstrip()[:-1] + f", {pair}}}"


def _keys(text: str, chance: random.Random) -> str:
    pairs = list(_object(text).items())
    match chance.randrange(6):
        case 0:
            chance.shuffle(pairs)  # stays valid
        case 1 if pairs:
            del pairs[chance.randrange(len(pairs))]
        case 2:
            pairs.insert(0, (chance.choice(_WRONG_KEYS), 10))
        case 3 if pairs:
            at = chance.randrange(len(pairs))
            pairs[at] = (
                chance.choice([pairs[at][0].upper(), pairs[at][0] + "\u200b", pairs[at][0][:-1]]),
                pairs[at][1],
            )
        case 4 if len(pairs) > 1:
            a, b = chance.sample(range(len(pairs)), 2)
            pairs[a], pairs[b] = (pairs[a][0], pairs[b][1]), (pairs[b][0], pairs[a][1])
        case _:
            pairs += pairs
    return (
        "{" + ", ".join(f"{json.dumps(k, ensure_ascii=chance.random() < 0.5)}: {json.dumps(v)}" for k, v in pairs) + "}"
    )


def _nested(text: str, chance: random.Random) -> str:
    before, after = chance.choice(_BRACKETS)
    return before + (json.dumps(text)[1:-1] if before == '"' else text) + after


def _deep(text: str, chance: random.Random) -> str:
    depth = chance.choice((10, 100, 900, 990, 1000, 1100, 5000, 50_000))
    opening, closing = chance.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    inside = chance.choice(("", "1", "null")) if opening == "[" else "1"
    value = opening * depth + inside + (closing * depth if chance.random() < 0.7 else "")
    return value if chance.random() < 0.3 else _swap_value(text, chance, lambda _: True, value)


def _truncate(text: str, chance: random.Random) -> str:
    return text[: chance.randrange(len(text) + 1)]


def _two(text: str, chance: random.Random) -> str:
    joint = chance.choice(("", "\n", ",", " ", "\x1e", "\n---\n"))
    return text + joint + chance.choice((text, "{}", "null", text[: len(text) // 2]))


def _around(pairs: Sequence[tuple[str, str]]) -> Callable[[str, random.Random], str]:
    def surround(text: str, chance: random.Random) -> str:
        before, after = chance.choice(pairs)
        return before + text + after

    return surround


def _spaces(text: str, chance: random.Random) -> str:
    if chance.random() < 0.5:
        return chance.choice(_SPACES) + text + chance.choice(_SPACES)
    return json.dumps(
        _object(text),
        indent=chance.choice((1, 4, "\t", "\u3000")),
        separators=chance.choice(((",", ":"), (" , ", " : "))),
    )


def _in_string(text: str, chance: random.Random) -> str:
    reply = _object(text)
    texts = [key for key, value in reply.items() if isinstance(value, str)] or list(reply) or ["reason"]
    key, value = (
        chance.choice(texts),
        chance.choice([*_ODD, "", "x" * 700, '"}, "safety": 10, {"', "```json\n{}\n```", json.dumps(reply)]),
    )
    return json.dumps({**reply, key: f"{reply.get(key)}{value}"}, ensure_ascii=chance.random() < 0.5)


def _escape(text: str, chance: random.Random) -> str:
    places = [at for at, character in enumerate(text) if character == '"'] or [0]
    at = chance.choice(places) + 1
    return text[:at] + chance.choice(_ESCAPES) + text[at:]


def _quotes(text: str, chance: random.Random) -> str:
    return text.replace('"', chance.choice(("'", "“", "＂", '\\"', "`")))


def _commas(text: str, chance: random.Random) -> str:
    return chance.choice(
        (text.rstrip()[:-1] + ",}", text.replace(",", ";", 1), text.replace(",", ",,", 1), text.replace(":", "=", 1))
    )


def _huge(text: str, chance: random.Random) -> str:
    return chance.choice(
        (" " * 200_000 + text, text + "\n" * 200_000, text.replace(": ", ": " + " " * 50_000, 1), "{" * 100_000)
    )


def _lookalikes(text: str, chance: random.Random) -> str:
    for plain, other in chance.sample(_LOOKALIKES, 2):
        text = text.replace(plain, other, chance.randint(1, 3))
    return text


def _nothing(text: str, chance: random.Random) -> str:
    return chance.choice(_NOTHINGS)


def _swap_value(text: str, chance: random.Random, which: Callable[[Any], bool], new: str) -> str:
    """`text` with one of its values replaced by the characters `new`."""
    reply = _object(text)
    keys = [key for key, value in reply.items() if which(value)]
    if not keys:
        return text + new
    hit = chance.choice(keys)
    return "{" + ", ".join(f"{json.dumps(k)}: {new if k == hit else json.dumps(v)}" for k, v in reply.items()) + "}"


def _object(text: str) -> dict[str, Any]:
    """The object in `text`, or {} if an earlier mutation left none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


#: Name -> mutation. "echo" is done by `mutations`, which knows the text.
KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "bytes": _bytes,
    "characters": _characters,
    "number": _number,
    "value": _any_value,
    "big_number": _big,
    "duplicate": _repeat,
    "keys": _keys,
    "nested": _nested,
    "deep": _deep,
    "truncated": _truncate,
    "two": _two,
    "prose": _around(_PROSE),
    "fence": _around(_FENCES),
    "spaces": _spaces,
    "string": _in_string,
    "escape": _escape,
    "quotes": _quotes,
    "commas": _commas,
    "huge": _huge,
    "lookalikes": _lookalikes,
    "nothing": _nothing,
    "echo": lambda text, chance: text,
}
