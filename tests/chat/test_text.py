"""Untrusted text is made harmless, and ordinary text is left alone."""

import re
import string
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_steer.chat.text import after_thinking, control_token, neutralise, sanitise

TOKENS = [
    "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<｜begin▁of▁sentence｜>", "<image>",
    "<IMAGE>", "<video>", "</s>", "<s>", "<s />", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[IMG]", "<start_of_turn>",
    "<image_soft_token>", "<IMG_CONTEXT>", "<think>", "</think>", "<tool_call>", "[TOOL_CALLS]", "<unk>",
    "<turn|>", "<|turn>", "<fake_token_around_image>", "<row_1_col_2>", "<loc0001>", "<unused7>", "[gMASK]", "]~b]", "[e~[",
    "<seed:bos>", "<EOS_TOKEN>", "[ARGS]", "|ENDOFTEXT|", "<extra_id_0>", "<reserved_102>", "<SPECIAL_12>",
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_a_control_token_is_gone_but_still_readable(token):
    cleaned = neutralise(f"a {token} b")
    assert token not in cleaned
    assert re.sub(r"\W", "", token.lower()) in re.sub(r"\W", "", cleaned.lower())


@pytest.mark.parametrize(
    "hidden",
    [
        "\u200b",
        "\u200d",
        "\u2060",
        "\ufeff",
        "\u00ad",
        "\u202e",
        "\x00",
        "\x1b",
        "\U000e0041",
        "\ud800",
        "\u2065",
        "\u180b",
        "\ufff0",
    ],
)
def test_an_invisible_character_is_gone_and_hides_no_token(hidden):
    assert neutralise(f"sa{hidden}fe") == "safe"
    assert neutralise(f"<|im{hidden}_start|>") == "(im_start)"


@pytest.mark.parametrize("nested", ["<|im_<|x|>start|>", "<im<image>age>", "[IN[INST]ST]", "<<s>image>", "<|<|a|>|>"])
def test_taking_a_token_out_leaves_no_other(nested):
    cleaned = neutralise(nested)
    assert not any(token.lower() in cleaned.lower() for token in TOKENS)
    assert "<|" not in cleaned


@pytest.mark.parametrize(
    "plain",
    [
        "a < b and c > d",
        "if (x <b> y)",
        "<b>bold</b>",
        "x = [1, 2]",
        "naïve café 漢字 😀",
        "a\tb\nc",
        "50 % | 60 %",
        "[1] <3",
        "git add [args]",
        "|speaker|words|",
        "a |> f",
        "ｆｕｌｌ width <ｂ>",
    ],
)
def test_ordinary_text_stays_as_it_is(plain):
    assert neutralise(plain) == plain


@pytest.mark.parametrize(
    "token", ["＜|im_end|＞", "<｜ｉｍ_ｅｎｄ｜>", "<𝐢𝐦𝐚𝐠𝐞>", "［ＩＮＳＴ］", "<\u017f>", "[IN\u017fT]"]
)
def test_a_token_in_letters_that_a_tokenizer_may_fold_is_gone(token):
    folded = unicodedata.normalize("NFKC", neutralise(f"a {token} b")).lower()
    assert not any(known.lower() in folded for known in TOKENS) and folded.startswith("a (")


def test_terminal_sequences_go_whole_so_that_they_stick_to_no_word():
    assert neutralise("\x1b[8mno\x1b[0m, \x9b1;31mred \x1b[2Kx\x1b[") == "no, red x"
    assert neutralise("\x1b]0;title\x07") == "]0;title"  # its text is text


def test_long_hostile_text_costs_by_its_cap_and_not_by_its_length():
    texts = ["\u200b" * 2**20, "<im" * 2**18 + "age>" * 2**18, "é" * 2**20, "<|" * 2**19]
    begin = time.process_time()
    assert all(len(sanitise(text, 1000)) <= 1000 for text in texts)
    capped = time.process_time()
    for text in texts:
        neutralise(text)
    assert capped - begin < (time.process_time() - capped) / 5


@pytest.mark.parametrize(
    ("text", "token"),
    [("a <im\u200bage> b", "<image>"), ("x <| y", "<|"), ("＜｜x｜＞", "＜｜x｜＞"), ("plain [1] <b>", None)],
)
def test_the_first_control_token_is_named_as_it_was_spelled(text, token):
    assert control_token(text) == token


def test_every_kind_of_line_break_is_a_newline():
    assert neutralise("a\r\nb\rc\u2028d\u0085e") == "a\nb\nc\nd\ne"


hostile = st.lists(
    st.sampled_from([*TOKENS, "<", "|", ">", "[", "]", "/", "im", "s", " ", "\u200b"]) | st.text(max_size=4)
)


@given(hostile.map("".join))
def test_neutralising_twice_changes_nothing_and_leaves_no_token(text):
    cleaned = neutralise(text)
    assert neutralise(cleaned) == cleaned
    assert "<|" not in cleaned and not any(token.lower() in cleaned.lower() for token in TOKENS)
    cleaned.encode("utf-8")


@given(st.text(alphabet=string.ascii_letters + " <|>", max_size=80), st.integers(1, 60))
def test_the_cap_holds(text, cap):
    assert len(sanitise(text, cap)) <= cap


def test_the_cut_is_at_a_word_and_shows():
    assert sanitise("one two three four five six seven", 31) == "one two three four five six…"
    assert sanitise("short", 5) == "short"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think>Hi", "Hi"),
        ("\n<thinking>\na\n</thinking>\n\nHi\n", "Hi\n"),
        ("<think>a</think><think>b</think>Hi", "Hi"),
        ("<think>a</think>\n\n<thinking>b\n</thinking>\n Hi", "Hi"),
        ("<think></think><think>", "<think>"),
        ("<think>use <think> tags</think>Hi", "Hi"),
        ("<think>a</think>Close it with </think>, then stop.", "Close it with </think>, then stop."),
        ("<think>a</think>", ""),
        ("thoughts\n</think>\n\nHi", "Hi"),
        ("thoughts</think> \r\nHi", "Hi"),
        ("They want it.</think>Hi", "Hi"),
        ("他们想要它。</think>Hi", "Hi"),
        ("the tag </think> ends it\n</think>\nHi", "Hi"),
        ("thoughts\n</think>\n<think>b</think>Hi", "Hi"),
        ("thoughts\n</think>", ""),
    ],
)
def test_what_is_thought_before_a_reply_is_no_part_of_it(text, said):
    assert after_thinking(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "Write </think> to close it. Done",
        "Write `</think>` to close it.\nDone",
        "I close a tag, <think>so</think>, in the middle.",
        "First <think>a\n</think>\nthen",
        "<think>never closed",
        " no thinking at all\n",
        "",
    ],
)
def test_a_reply_that_speaks_of_thinking_stays_whole(text):
    assert after_thinking(text) == text


def test_taking_the_thinking_out_costs_by_the_length_of_a_text():
    def seconds(n):
        texts = [
            "<think>" * n,
            "<think>a</think>" * n,
            "</think> " * n,
            "<think></think>" + " \n" * n + "<",
            "a.</think" * n,
        ]
        begin = time.process_time()
        for text in texts:
            after_thinking(text)
        return time.process_time() - begin

    assert seconds(40_000) < 40 * max(seconds(4_000), 0.001)
