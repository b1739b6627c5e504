"""Can this row become a dialogue? Asked before training, with the answer in words.

Used twice with one meaning: preflight stops on the first bad row, the data set keeps an account of
all of them. Pictures are opened but not decoded: the header tells format and size.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from verl_steer.chat.text import neutralise
from verl_steer.data.rows import RowError, row_to_script
from verl_steer.dialogue import Script, UserTurn
from verl_steer.roles.layout import media_type

#: What is read; a tutor can be sent less (`roles.layout.media_type`), so `data convert` encodes anew.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class RowLimits:
    """What a run can hold.

    Attributes:
        prompt_tokens: `data.max_prompt_length`: system prompt and first user turn.
        response_tokens: `data.max_response_length`: everything after it; None: not checked.
        max_turns: `steer.dialogue.max_turns`; longer scripts are cut there, which is no fault.
        message_tokens: Tokens of an empty user message in the student's chat template, with everything that the
            template adds around it (default system prompt, generation prompt): an upper bound for each turn.
        count_text: Tokens of a text.
        count_image: Tokens of a picture of (width, height) pixels.
        pictures: `actor_rollout_ref.rollout.limit_images`: of the whole dialogue; None: not checked.
    """

    prompt_tokens: int
    response_tokens: int | None
    max_turns: int
    message_tokens: int
    count_text: Callable[[str], int]
    count_image: Callable[[int, int], int]
    pictures: int | None = None


def check_row(row: Mapping[str, Any], limits: RowLimits) -> str | None:
    """Says why a row cannot be used, or None if it can."""
    try:
        script = row_to_script(row)
        return _picture_fault(script, limits) or _length_fault(script, limits)
    except RowError as error:
        return str(error)


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) in pixels, from the header.

    Raises:
        RowError: The bytes are no picture of an allowed format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise RowError(f"{where} cannot be read as one of {', '.join(FORMATS)}: {error}") from error


def _picture_fault(script: Script, limits: RowLimits) -> str | None:
    """Each picture can be sent to the tutor, and all of them to the rollout's server, which says so only late."""
    turns = script.turns[: limits.max_turns]
    for t, turn in enumerate(turns, 1):
        for n, image in enumerate(turn.images, 1):
            where = f"seed {script.seed_id!r}: turn {t}: picture {n}"
            image_size(image.data, where)  # damaged bytes are named as such
            try:
                media_type(image.data)
            except ValueError as error:
                return f"{where} cannot be sent to the tutor: {error}; encode it as PNG"
    shown = sum(len(turn.images) for turn in turns)
    if limits.pictures is not None and shown > limits.pictures:
        return (
            f"its {len(turns)} turns show {shown} pictures, actor_rollout_ref.rollout.limit_images is {limits.pictures}; "
            "raise that key"
        )
    return None


def _length_fault(script: Script, limits: RowLimits) -> str | None:
    turns = script.turns[: limits.max_turns]
    system = limits.count_text(neutralise(script.system)) + limits.message_tokens if script.system else 0
    lengths = [
        _turn_tokens(turn, f"seed {script.seed_id!r}: turn {t}: picture", limits) for t, turn in enumerate(turns, 1)
    ]
    prompt = system + lengths[0]
    if prompt > limits.prompt_tokens:
        return f"the first prompt holds about {prompt} tokens, data.max_prompt_length is {limits.prompt_tokens}"
    if limits.response_tokens is not None:
        # The loop's own rule: planned user turns, and at least one token and an end token for each reply.
        needed = sum(lengths[1:]) + 2 * len(turns)
        if needed > limits.response_tokens:
            return (
                f"its {len(turns)} planned turns need about {needed} tokens with the shortest replies, "
                f"data.max_response_length is {limits.response_tokens}"
            )
    return None


def _turn_tokens(turn: UserTurn, where: str, limits: RowLimits) -> int:
    pictures = sum(
        limits.count_image(*image_size(image.data, f"{where} {n}")) + 2 for n, image in enumerate(turn.images, 1)
    )
    return limits.count_text(neutralise(turn.text)) + limits.message_tokens + pictures
