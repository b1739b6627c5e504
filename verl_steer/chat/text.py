"""Text from a model, or from a data set, is data: what is done to it before it enters any prompt.

A tokenizer turns `<|im_start|>` inside ordinary content into the control token of that name, an image
placeholder without an image breaks the server's prompt, and a zero-width character hides a word from
a reader but not from a model. So all text that we did not write ourselves passes through here, in both
directions: the student's replies on their way to the tutor, the tutor's questions on their way back.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

# Named control tokens that do not have the <|...|> form, of the model families in use. Only exact names:
# `a < b` and `<b>bold</b>` stay as they are.
_ANGLE_NAMES = (
    # Llama, Mistral, Gemma, T5, GLM, Command: begin, end, padding, reserved places
    "s|bos|eos|pad|unk|mask|sep|cls|sop|eop|start_of_turn|end_of_turn|end_of_utterance|im_start|im_end|"
    "(?:bos|eos|eop|pad|unk|cls|sep|mask)_token|unused_?\\d+|reserved_\\d+|special_\\d+|extra_id_\\d+|seed:\\w{1,40}|"
    # LLaVA, InternVL, Gemma, MiniCPM, Idefics, Molmo, PaliGemma, Nemotron: places where a picture or a sound goes
    "image|images|img|video|audio|(?:image|audio|video)_soft_token|image_placeholder|img_context|image_id|image_pad|"
    "(?:start|end)_of_(?:image|audio|video)|im_patch|im_col|low_res_im_(?:start|end)|fake_token_around_image|"
    "global-img|row_\\d+_col_\\d+|slice|loc\\d+|seg\\d+|"
    # Qwen, DeepSeek, Hermes, Gemma: thinking, tools, regions
    "think|thinking|tool_call|tool_response|tool_code|tool_output|tools|box|ref|quad|point|poly"
)
_SQUARE_NAMES = (
    "inst|img|img_break|img_end|tool_calls|tool_results|available_tools|system_prompt|audio|begin_audio|think|"
    "prefix|suffix|middle|control_\\d+|bos|eos|pad|cls|sep|mask|gmask|smask|unk|@bos@|"
    # Words that stand in brackets in ordinary text too: only as the tokenizers spell them.
    "(?-i:ARGS|CALL_ID|TOOL_CONTENT|MODEL_SETTINGS|TRANSCRIBE|REF)"
)
_BAR = "|\uff5c"  # DeepSeek writes its control tokens with the full-width bar
_CONTROL_TOKEN = re.compile(
    rf"<[{_BAR}](?P<bar>[^<>{_BAR}\n]{{1,80}})[{_BAR}]>"
    rf"|<(?P<half>[\w/]{{1,40}})[{_BAR}]>"  # the newer Gemma's <turn|>; its <|turn> loses its bar below
    rf"|<(?P<angle>/?(?:{_ANGLE_NAMES}))\s*/?>"
    rf"|\[(?P<square>/?(?:{_SQUARE_NAMES}))\]"
    r"|<<(?P<sys>/?SYS)>>"
    r"|(?-i:\|(?P<fuyu>ENDOFTEXT|SPEAKER|NEWLINE)\|)"
    r"|\](?P<minimax>~b|~!b|!p~|!d~)[\[\]]|\[(?P<minimax_end>e~)\[",
    re.IGNORECASE,
)
_THINKING_TAG = re.compile("(</?think(?:ing)?>)")  # as models write them, and in no other letters
# Up to the first end: what is thought may name the tag that opens it.
_THINKING_BLOCK = r"\s*<think(?:ing)?>.*?</think(?:ing)?>"
# Templates that open the block themselves leave only its end in the reply: at the end of a line, or right behind a
# sentence. Elsewhere the tag is a word of the reply, and so is what stands before it.
_THINKING_END = r"(?:(?!<think).)*?(?:(?<=[.!?…。！？])</think(?:ing)?>|</think(?:ing)?>(?=[^\S\n]*(?:\n|\Z)))"
_THINKING_FIRST = re.compile(rf"\A(?:{_THINKING_BLOCK}|{_THINKING_END})(?:{_THINKING_BLOCK})*\s*", re.DOTALL)
_OPEN_BAR = re.compile(rf"<(?=[{_BAR}])")
_LINE_BREAKS = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
# Colours and cursor moves of a terminal, unfinished ones too. Without its first character the rest of one, e.g.
# "[8m", would stick to the word after it and hide that word from a reader of words.
_ANSI = re.compile("(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?")
# Cc controls, Cf zero-width and direction marks and tag characters, Cs lone surrogates (not even
# encodable as UTF-8), Co private use.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co"})
# What Unicode calls default-ignorable in other categories: fillers, variation selectors, reserved places.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# `sanitise` looks at so many characters for each one that it may keep: more are invisible, or are cut anyway.
_LOOKED_AT = 8

_RUN_CHARS = 32
_LONG_RUN = re.compile(rf"\s{{{_RUN_CHARS + 1},}}|([^\w\s])\1{{{_RUN_CHARS},}}")


def neutralise(text: str) -> str:
    """Makes `text` safe to put into any model's prompt; idempotent.

    Invisible characters and terminal sequences go (line breaks become newlines, tabs stay); then each control
    token becomes its name in round brackets, e.g. `<|im_start|>` -> `(im_start)`, so that a reader still sees
    that it was there but no tokenizer does. Tokens in full-width or other compatibility letters count too: some
    tokenizers fold them (NFKC).
    """
    text = visible(text)
    # Until nothing changes: taking a token out of `<|im_<|x|>start|>` may leave another one.
    while tokens := list(_CONTROL_TOKEN.finditer(folded(text))):
        text = _as_words(text, tokens)
    return _break_open_bars(text)


def own_words(text: str) -> str:
    """What a model wrote, as it goes back to that model: its thinking tags stay, every other control token is neutralised.

    It was trained to read its thinking in these tags, or to have a chat template take it out by them; anything else that it
    spells out its tokenizer would read as a control token.
    """
    pieces = _THINKING_TAG.split(text)  # the odd ones are the tags
    return "".join(p if n % 2 or control_token(p) is None else neutralise(p) for n, p in enumerate(pieces))


def after_thinking(text: str) -> str:
    """What a model says to the user: a server without a reasoning parser sends the thinking before it, in one block or several."""
    return _THINKING_FIRST.sub("", text, count=1)


def visible(text: str) -> str:
    """`text` without what no reader sees: terminal sequences, controls, zero-width and direction marks."""
    text = _LINE_BREAKS.sub("\n", text)
    if text.isascii() and text.isprintable():
        return text
    return _IGNORABLE.sub("", "".join(filter(_seen, _ANSI.sub("", text))))


def folded(text: str) -> str:
    """`text` with every character replaced by its one ASCII equivalent where compatibility (NFKC) knows one.

    As long as `text`: what is found in it lies at the same place there.
    """
    if text.isascii():
        return text
    return "".join(c if c.isascii() else _ascii_of(c) for c in text)


def control_token(text: str) -> str | None:
    """The first control token in `text`, as its writer spelled it, or None."""
    text = visible(text)
    found = _CONTROL_TOKEN.search(folded(text)) or _OPEN_BAR.search(folded(text))
    return None if found is None else text[found.start() : max(found.end(), found.start() + 2)]


def sanitise(text: str, max_chars: int) -> str:
    """`neutralise`, and at most `max_chars` characters, cut at a space where one is near.

    In a text that is too long, long runs of spaces or of one sign are shortened first: a tokenizer writes a hundred
    of them as one token, so a few would push all that follows over the cap.

    Args:
        text: Untrusted text.
        max_chars: Cap of the result, at least 1.
    """
    whole = len(text) <= _LOOKED_AT * max_chars
    text = neutralise(text if whole else text[: _LOOKED_AT * max_chars])
    if len(text) > max_chars:
        text = _LONG_RUN.sub(lambda run: run[0][:_RUN_CHARS] + "…", text)
    if whole and len(text) <= max_chars:
        return text
    room = max_chars - 1
    at = text.rfind(" ", int(room * 0.9), room)
    return text[: at if at > 0 else room].rstrip() + "…"


def _seen(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in _INVISIBLE_CATEGORIES


@functools.lru_cache(maxsize=4096)
def _ascii_of(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 and plain.isascii() else character


def _as_words(text: str, tokens: Sequence[re.Match[str]]) -> str:
    """`text` with each token, found in the folded text, replaced by its name in brackets."""
    pieces, at = [], 0
    for token in tokens:
        first, last = token.span(token.lastgroup or 0)
        pieces += [text[at : token.start()], "(", text[first:last], ")"]
        at = token.end()
    return "".join([*pieces, text[at:]])


def _break_open_bars(text: str) -> str:
    """`<|` without its end is no token, but may be the beginning of one in the text that follows."""
    places = [match.end() for match in _OPEN_BAR.finditer(folded(text))]
    return " ".join(text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True))
