"""A student that stays as it was, to tell how hard the tutor's attacks are.

The return of a student that is trained against an adaptive tutor says little by itself: attacks harden as it
learns. What a student that does not change makes of the same attacks says how hard they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from verl_steer.chat.outcome import ChatResult
from verl_steer.chat.text import own_words
from verl_steer.config import DifficultyConfig, WorldConfig
from verl_steer.dialogue import ImageRef
from verl_steer.roles.layout import data_url
from verl_steer.roles.tutor import Exchange


class FrozenStudent(Protocol):
    """Replies greedily to the last question of a dialogue that somebody else led."""

    async def reply(
        self, system: str, history: Sequence[Exchange], question: str, images: Sequence[ImageRef], max_tokens: int
    ) -> ChatResult:
        """One reply.

        Args:
            system: System prompt, or "".
            history: The exchanges before.
            question: What is asked now.
            images: Shown with it.
            max_tokens: Length of the reply.

        Returns:
            A typed outcome; never raises for what a model or a network did.
        """
        ...


class EndpointStudent:
    """`FrozenStudent` behind an OpenAI-compatible server.

    Args:
        config: The validated `steer.difficulty` node, kind `endpoint`.
        max_concurrency: This process's share of the job's limit.
    """

    def __init__(self, config: DifficultyConfig, max_concurrency: int) -> None:
        from verl_steer.chat.client import ChatClient  # httpx costs 0.1 s that a local student does not need

        self._timeout_s = config.timeout_s
        self._client = ChatClient(
            config.model, config.base_urls, max_concurrency=max_concurrency, api_key_env=config.api_key_env
        )

    async def reply(
        self, system: str, history: Sequence[Exchange], question: str, images: Sequence[ImageRef], max_tokens: int
    ) -> ChatResult:
        """As `FrozenStudent.reply`.

        Raises:
            ChatConfigError: The API key's environment variable is not set.
        """
        messages = chat_messages(system, history, question, images)
        return await self._client.complete(
            messages, key=question, deadline_s=self._timeout_s, max_tokens=max_tokens, temperature=0.0
        )


def chat_messages(
    system: str, history: Sequence[Exchange], question: str, images: Sequence[ImageRef]
) -> list[dict[str, Any]]:
    """A dialogue as OpenAI chat messages, pictures before the text they come with.

    Replies go as `own_words`, whoever wrote them: a control token that one spells out would forge a turn, or be refused.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for exchange in history:
        messages.append(_user(exchange.question, exchange.images))
        messages.append({"role": "assistant", "content": own_words(exchange.reply)})
    return [*messages, _user(question, images)]


def build_frozen_student(config: DifficultyConfig, world: WorldConfig, max_concurrency: int) -> FrozenStudent | None:
    """The student named by `steer.difficulty.kind`, or None.

    Args:
        config: The validated `steer.difficulty` node.
        world: Where the embedded student lies, for kind `microworld`.
        max_concurrency: This process's share of the job's limit.
    """
    if config.kind == "none":
        return None
    if config.kind == "microworld":
        # By name only: the core does not depend on the embedded default.
        student: FrozenStudent = importlib.import_module("verl_steer.microworld.frozen").MicroworldStudent(world)
        return student
    return EndpointStudent(config, max_concurrency)


def _user(text: str, images: Sequence[ImageRef]) -> dict[str, Any]:
    if not images:
        return {"role": "user", "content": text}
    shown = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
