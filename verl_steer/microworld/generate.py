"""Plays scripted dialogues with a student, many at a time, greedy or sampled.

Tokens in, tokens out, as in training: a reply's tokens are appended as they were sampled. Dialogues
at the same turn run as one batch, padded on the left, and each turn reuses the keys and values of
the turns before it only inside one call of the decoder: simple, and fast enough for a probe.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from verl_steer.dialogue import Script
from verl_steer.local.checkpoint import model_of


def load(model_dir: str | Path) -> tuple[Any, Any]:
    """(model, processor) of a saved student, in fp32 on the CPU.

    Raises:
        CheckpointError: The folder lacks weights of the model.
    """
    model = model_of(Path(model_dir), "float32")  # first: it makes sure that the processor finds a torchvision
    from transformers import AutoProcessor

    return model.eval(), AutoProcessor.from_pretrained(model_dir)


@torch.no_grad()
def play(model: Any, processor: Any, scripts: Sequence[Script], max_turn_tokens: int) -> list[list[str]]:
    """Greedy replies to every scripted question.

    Returns:
        One list of replies per script, as long as the script.
    """
    replies: list[list[str]] = [[] for _ in scripts]
    tokens: list[list[int]] = [[] for _ in scripts]
    values, grids = _pictures(processor, scripts)
    for turn in range(max(len(script.turns) for script in scripts)):
        alive = [i for i, script in enumerate(scripts) if turn < len(script.turns)]
        for i in alive:
            tokens[i] += question_tokens(processor, scripts[i].turns[turn].text, grids[i] if turn == 0 else None)
        seen = torch.cat([values[i] for i in alive]), torch.cat([grids[i] for i in alive])
        for i, sampled in zip(alive, decode(model, [tokens[i] for i in alive], seen, max_turn_tokens), strict=True):
            end = model.config.text_config.eos_token_id
            replies[i].append(processor.tokenizer.decode([t for t in sampled if t != end]))
            tokens[i] += [*sampled, *([] if sampled and sampled[-1] == end else [end])]
    return replies


def question_tokens(processor: Any, text: str, grid: torch.Tensor | None) -> list[int]:
    """Tokens of one user turn and the opening of the reply.

    Args:
        text: The question.
        grid: int64 [images, 3] if pictures stand before it, else None: then it follows a reply.
    """
    n = 0 if grid is None else int(grid.prod(-1).sum()) // processor.image_processor.merge_size**2
    picture = f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" if n else ""
    lead = "" if grid is not None else "\n"
    text = f"{lead}<|im_start|>user\n{picture}{text}<|im_end|>\n<|im_start|>assistant\n"
    return list(processor.tokenizer(text)["input_ids"])


def decode(
    model: Any,
    prompts: Sequence[list[int]],
    pictures: tuple[torch.Tensor, torch.Tensor],
    max_new: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """Continues every prompt until its end token, which is kept, or for `max_new` tokens.

    Args:
        pictures: (pixel_values, image_grid_thw) of all prompts, in their order.
        temperature: 0 is greedy.
    """
    text = model.config.text_config
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), text.pad_token_id)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        attention[row, length - len(prompt) :] = 1
    kinds = (ids == model.config.image_token_id).int()
    values, grid = pictures
    position, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=grid, attention_mask=attention)
    out = model(
        input_ids=ids, attention_mask=attention, position_ids=position, pixel_values=values, image_grid_thw=grid,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    step = position.amax(dim=(0, 2))
    sampled: list[list[int]] = [[] for _ in prompts]
    open_rows = torch.ones(len(prompts), dtype=torch.bool)
    for n in range(max_new):
        logits = out.logits[:, -1].float()
        # A student never writes picture placeholders: they would count as pictures it does not have.
        logits[:, [model.config.image_token_id, model.config.video_token_id]] = -torch.inf
        if temperature:
            chosen = torch.multinomial(torch.softmax(logits / temperature, -1), 1)[:, 0]
        else:
            chosen = logits.argmax(-1)
        for row in open_rows.nonzero()[:, 0].tolist():
            sampled[row].append(int(chosen[row]))
        open_rows &= chosen != text.eos_token_id
        if n + 1 == max_new or not open_rows.any():
            break
        step = step + 1
        attention = torch.cat([attention, torch.ones(len(prompts), 1, dtype=attention.dtype)], 1)
        out = model(
            input_ids=chosen[:, None], attention_mask=attention, position_ids=step[None, :, None].expand(3, -1, -1),
            past_key_values=out.past_key_values, use_cache=True,
        )  # fmt: skip
    return sampled


def _pictures(processor: Any, scripts: Sequence[Script]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pixel values and grids of every script's first turn."""
    values, grids = [], []
    for script in scripts:
        if any(turn.images for turn in script.turns[1:]):
            raise ValueError(f"seed {script.seed_id!r}: the probe plays pictures of the first turn only")
        images = [Image.open(io.BytesIO(image.data)).convert("RGB") for image in script.turns[0].images]
        seen = processor.image_processor(images=images, return_tensors="pt")
        values.append(seen["pixel_values"])
        grids.append(seen["image_grid_thw"])
    return values, grids
