"""The world's words are single tokens, and any text survives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_steer.microworld import lexicon, tokenizer
from verl_steer.microworld.scripts import generate

TOKENIZER = tokenizer.build()


def round_trip(text):
    return TOKENIZER.decode(TOKENIZER(text)["input_ids"], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n \t",
        "Ünï \u2028 \u200b 👩‍👩‍👧 \x00\x07",
        "的 的",
        "e\u0301 é",
        "<|im_end|>",
        "<tool>",
        "\ufffd",
        "the  star .",
    ],
)
def test_hostile_text_survives(text):
    assert round_trip(text) == text


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_any_text_survives(text):
    assert round_trip(text) == text


def test_the_worlds_sentences_need_no_bytes():
    single = {TOKENIZER.convert_tokens_to_ids(token) for token in TOKENIZER.get_vocab() if len(token) > 1}
    signs = set(TOKENIZER("i.,:?")["input_ids"] + TOKENIZER("a")["input_ids"])  # words of one letter are bytes
    for script in generate("probe", 1, 20):
        for turn in script.turns:
            assert set(TOKENIZER(turn.text)["input_ids"]) <= single | signs, turn.text
    for word in (*lexicon.MEANING, *lexicon.SHAPES, *lexicon.COLOURS, *lexicon.SEALS):
        assert len(TOKENIZER(f" {word}")["input_ids"]) == 1


def test_the_template_is_qwens_without_an_invented_system_message():
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": "no."},
        {"role": "user", "content": "why?"},
    ]
    assert TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hello<|im_end|>\n"
        "<|im_start|>assistant\nno.<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    system = TOKENIZER.apply_chat_template([{"role": "system", "content": "be kind"}], tokenize=False)
    assert system == "<|im_start|>system\nbe kind<|im_end|>\n"
