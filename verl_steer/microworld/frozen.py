"""The warmed student, left as it is: `roles.frozen.FrozenStudent` in this process."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence

import torch
from PIL import Image

from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.chat.text import own_words
from verl_steer.config import WorldConfig, world_root
from verl_steer.dialogue import ImageRef
from verl_steer.microworld import prepare
from verl_steer.microworld.generate import decode, load, question_tokens
from verl_steer.roles.tutor import Exchange
from verl_steer.threads import in_thread


class MicroworldStudent:
    """Loaded at its first reply; one reply at a time, in a thread.

    Args:
        world: Root and seed of the embedded world.
    """

    def __init__(self, world: WorldConfig) -> None:
        self._folder = prepare.paths(world_root(world.root), world.seed).student
        self._model, self._processor = None, None
        self._lock = threading.Lock()

    async def reply(
        self, system: str, history: Sequence[Exchange], question: str, images: Sequence[ImageRef], max_tokens: int
    ) -> ChatResult:
        """As `FrozenStudent.reply`; the micro-world has no system prompt, and shows its picture first."""
        started = time.perf_counter()
        pictures = [*(image for exchange in history for image in exchange.images), *images]
        questions = [*(exchange.question for exchange in history), question]
        # Spelled out, a placeholder for a picture would want one, and an end token would end the turn.
        replies = [own_words(exchange.reply) for exchange in history]
        text = await in_thread(lambda: self._reply(pictures, questions, replies, max_tokens))
        return ChatResult(Outcome.OK, text, latency_s=time.perf_counter() - started)

    @torch.no_grad()
    def _reply(self, pictures: list[ImageRef], questions: list[str], replies: list[str], max_tokens: int) -> str:
        with self._lock:
            if self._model is None:
                self._model, self._processor = load(self._folder)
            model, processor = self._model, self._processor
            end = model.config.text_config.eos_token_id
            shown = [Image.open(io.BytesIO(picture.data)).convert("RGB") for picture in pictures]
            seen = processor.image_processor(images=shown, return_tensors="pt")
            tokens: list[int] = []
            for t, question in enumerate(questions):
                tokens += question_tokens(processor, question, seen["image_grid_thw"] if t == 0 else None)
                if t < len(replies):
                    tokens += [*processor.tokenizer(replies[t])["input_ids"], end]
            values = (seen["pixel_values"], seen["image_grid_thw"])
            (sampled,) = decode(model, [tokens], values, max_tokens)
            return str(processor.tokenizer.decode([token for token in sampled if token != end]))
