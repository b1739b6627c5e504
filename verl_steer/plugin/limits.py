"""Token counts of texts and pictures, for checking rows against a run's limits."""

from __future__ import annotations

from typing import Any

from verl_steer.data.check import RowLimits
from verl_steer.data.rows import RowError


def row_limits(tokenizer: Any, processor: Any, data: Any, max_turns: int, pictures: int | None) -> RowLimits:
    """The limits of a run.

    Args:
        tokenizer: The student's tokenizer.
        processor: Its processor, or None for a text-only student (a picture is then unusable).
        data: verl's `data` node.
        max_turns: `steer.dialogue.max_turns`.
        pictures: `actor_rollout_ref.rollout.limit_images`; verl tells vLLM of none if it is null or 0.
    """
    return RowLimits(
        prompt_tokens=int(data.get("max_prompt_length", 1024)),
        response_tokens=int(data.get("max_response_length", 0)) or None,
        max_turns=max_turns,
        message_tokens=message_tokens(processor if processor is not None else tokenizer, tokenizer),
        count_text=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        count_image=lambda width, height: image_tokens(processor, width, height),
        pictures=pictures or None,
    )


def message_tokens(template: Any, tokenizer: Any) -> int:
    """Tokens of an empty user message with generation prompt, and one for the newline after a reply's end token."""
    text = template.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True)
    return len(tokenizer.encode(text, add_special_tokens=False)) + 1


def image_tokens(processor: Any, width: int, height: int) -> int:
    """Placeholder tokens of one picture after verl's resize (qwen_vl_utils) and the processor's own."""
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise RowError(
            "it shows a picture, but the student has no image processor; is it a vision model, is torchvision installed?"
        )
    from qwen_vl_utils.vision_process import smart_resize

    patch, merge = image_processor.patch_size, getattr(image_processor, "merge_size", 1)
    height, width = smart_resize(height, width, factor=patch * merge)
    patches = image_processor.get_number_of_image_patches(height, width, {})
    return int(patches) // merge**2
