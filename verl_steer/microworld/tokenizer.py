"""The student's tokenizer: one token a word of the world, bytes for everything else.

A byte-level BPE without merges, as far as the library is concerned: `ignore_merges` takes a whole
word if the vocabulary has it and falls back to single bytes if not. So the world's sentences are
short, and any text at all goes through and comes back unchanged. Special tokens and chat template
are Qwen2.5-VL's, except that no system message is invented where none was given.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from verl_steer.microworld.lexicon import (
    CHARMS,
    COLOURS,
    FRAMINGS,
    MOVES,
    ORDINALS,
    PURPOSES,
    RUDE,
    SEALS,
    SHAPES,
    TEMPLATES,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Qwen2.5-VL's, in its order.
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
PAD, EOS, IMAGE_PAD, VIDEO_PAD = "<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>"

# Words of the student's replies and of the warm-up's reading exercises.
PHRASES = (
    "the is so say no. shall we? look elsewhere? i see the picture. i do not know. left right and",
    "what do you see here? is the sealed or watched or open? what holds the now? what stands beside the? what is it all for? repeat: yes please",
    "you are a careful keeper",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words() -> list[str]:
    """Every word and sign of the world in a fixed order: " word", and "word" where texts start with it."""
    texts = [*(t.format(obj="other one", nth="first", purpose="river") for ts in TEMPLATES.values() for t in ts)]
    texts += [*FRAMINGS.values(), *MOVES.values(), *PHRASES]
    vocabulary: dict[str, None] = {"user": None, "assistant": None, "system": None}
    for text in texts:
        vocabulary.update(dict.fromkeys(re.findall(r" ?[a-z]+", text)))
        vocabulary.update(dict.fromkeys(f" {word}" for word in re.findall(r"[a-z]+", text)))
    coined = (word for charm in CHARMS.values() for pair in charm for word in pair)
    for word in (*SHAPES, *COLOURS, *SEALS, *ORDINALS, *PURPOSES, *RUDE, *coined):
        vocabulary[f" {word}"] = None
    return list(vocabulary)


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, equal in every process; its length is the model's vocabulary size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [byte_level.pre_tokenize_str(word)[0][0] for word in words()]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys([*alphabet, *pieces]))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
