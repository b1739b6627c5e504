"""Text from a model, or from a data set, is data: what is done to it before it enters any prompt.

A tokenizer turns `<|im_start|>` inside ordinary content into the control token of that name, an image
placeholder without an image breaks the server's prompt, and a zero-width character hides a word from
a reader but not from a model. So all text that we did not write ourselves passes through here, in both
directions: the student's replies on their way to the tutor, the tutor's questions on their way back.
"""

from __future__ import annotations

import re
import unicodedata

# Named control tokens that do not have the <|...|> form, of the model families in use: Llama and
# Mistral ([INST], <<SYS>>, </s>), Gemma (<start_of_turn>), LLaVA and InternVL (<image>, <IMG_CONTEXT>),
# Qwen (<think>, <tool_call>). Only exact names: `a < b` and `<b>bold</b>` stay as they are.
_ANGLE_NAMES = (
    "s|bos|eos|pad|unk|mask|sep|cls|image|images|img|video|audio|image_soft_token|image_placeholder|img_context|"
    "start_of_image|end_of_image|start_of_turn|end_of_turn|im_start|im_end|im_patch|think|thinking|tool_call|"
    "tool_response|tool_code|tool_output|tools|box|ref|quad"
)
_SQUARE_NAMES = (
    "inst|img|img_break|img_end|tool_calls|tool_results|available_tools|system_prompt|audio|begin_audio|think|"
    "prefix|suffix|middle|control_\\d+|bos|eos|pad|cls|sep|mask|unk"
)
_BAR = "|\uff5c"  # DeepSeek writes its control tokens with the full-width bar
_CONTROL_TOKEN = re.compile(
    rf"<[{_BAR}](?P<bar>[^<>{_BAR}\n]{{1,80}})[{_BAR}]>"
    rf"|<(?P<angle>/?(?:{_ANGLE_NAMES}))\s*/?>"
    rf"|\[(?P<square>/?(?:{_SQUARE_NAMES}))\]"
    r"|<<(?P<sys>/?SYS)>>",
    re.IGNORECASE,
)
_OPEN_BAR = re.compile(rf"<(?=[{_BAR}])")
_LINE_BREAKS = re.compile("\r\n?|[\u0085\u2028\u2029\v\f]")
# Cc controls, Cf zero-width and direction marks and tag characters, Cs lone surrogates (not even
# encodable as UTF-8), Co private use.
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co"})
_VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef\u034f\u115f\u1160\u3164\uffa0]")


def neutralise(text: str) -> str:
    """Makes `text` safe to put into any model's prompt; idempotent.

    Invisible characters go (line breaks become newlines, tabs stay); then each control token becomes
    its name in round brackets, e.g. `<|im_start|>` -> `(im_start)`, so that a reader still sees that it
    was there but no tokenizer does.
    """
    text = _LINE_BREAKS.sub("\n", text)
    if not text.isascii() or not text.isprintable():
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _INVISIBLE_CATEGORIES)
        text = _VARIATION_SELECTORS.sub("", text)
    # Until nothing changes: taking a token out of `<|im_<|x|>start|>` may leave another one.
    while (replaced := _CONTROL_TOKEN.sub(_as_words, text)) != text:
        text = replaced
    return _OPEN_BAR.sub("< ", text)


def sanitise(text: str, max_chars: int) -> str:
    """`neutralise`, and at most `max_chars` characters, cut at a space where one is near.

    Args:
        text: Untrusted text.
        max_chars: Cap of the result, at least 1.
    """
    text = neutralise(text)
    if len(text) <= max_chars:
        return text
    room = max_chars - 1
    at = text.rfind(" ", int(room * 0.9), room)
    return text[: at if at > 0 else room].rstrip() + "…"


def _as_words(match: re.Match[str]) -> str:
    return f"({next(name for name in match.groups() if name is not None)})"
