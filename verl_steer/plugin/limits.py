"""Token counts of texts and pictures, for checking rows against a run's limits."""

from __future__ import annotations

from typing import Any

from verl_steer.data.check import RowLimits


def row_limits(tokenizer: Any, processor: Any, data: Any, max_turns: int) -> RowLimits:
    """The limits of a run.

    Args:
        tokenizer: The student's tokenizer.
        processor: Its processor, or None for a text-only student (a picture is then unusable).
        data: verl's `data` node.
        max_turns: `steer.dialogue.max_turns`.
    """
    return RowLimits(
        prompt_tokens=int(data.get("max_prompt_length", 1024)),
        response_tokens=int(data.get("max_response_length", 0)) or None,
        max_turns=max_turns,
        count_text=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        count_image=lambda width, height: image_tokens(processor, width, height),
    )


def image_tokens(processor: Any, width: int, height: int) -> int:
    """Placeholder tokens of one picture after verl's resize (qwen_vl_utils) and the processor's own."""
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        return 10**9  # a student that cannot see: no limit admits a picture
    from qwen_vl_utils.vision_process import smart_resize

    patch, merge = image_processor.patch_size, getattr(image_processor, "merge_size", 1)
    height, width = smart_resize(height, width, factor=patch * merge)
    patches = image_processor.get_number_of_image_patches(height, width, {})
    return int(patches) // merge**2
