"""The token side of a dialogue: what was sampled is what is trained on.

Tokens are only ever appended, through verl's Continuous Token builder; nothing is decoded and
encoded again. The ledger keeps three parallel lists (ids, mask, log-probabilities) and knows how
much of the reply budget is left, so that the loop can ask "does this question fit?" before it
changes any state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from verl.experimental.agent_loop.agent_loop import AgentLoopBase
from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

from verl_steer.threads import in_thread

Message = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A user turn, tokenised once: to see whether it fits, to append it, and for all rollouts of its row.

    Attributes:
        message: The chat message.
        ids: Tokens of the turn and of the generation prompt after it, without a boundary token before it.
        shared: `ids` depend on nothing before the turn, so they can be appended as they are.
    """

    message: Message
    ids: list[int]
    shared: bool

    @property
    def length(self) -> int:
        """Response tokens that appending it adds, at most.

        The builder may insert one boundary token (Qwen: the newline after the end token), which is
        counted whether it comes or not.
        """
        return len(self.ids) + 1


class TokenLedger:
    """Prompt and response tokens of one rollout.

    Attributes:
        prompt_ids: Tokens of the first prompt (system, first user turn, generation prompt).
        ids: prompt_ids followed by everything after it.
        mask: One entry per response token: 1 for sampled tokens, 0 for everything else.
        logprobs: One entry per response token; 0.0 where mask is 0. None if the rollout gives none.
        messages: The conversation as chat messages; only its tail is ever rendered.
    """

    def __init__(self, loop: AgentLoopBase, messages: list[Message], prompt_ids: list[int]) -> None:
        self._loop = loop
        self.messages = list(messages)
        self.prompt_ids = list(prompt_ids)
        self.ids = list(prompt_ids)
        self.mask: list[int] = []
        self.logprobs: list[float] | None = []

    @property
    def response_length(self) -> int:
        """Response tokens so far."""
        return len(self.mask)

    @property
    def response_ids(self) -> list[int]:
        """Everything after the first prompt."""
        return self.ids[len(self.prompt_ids) :]

    def append_reply(self, text: str, token_ids: list[int], logprobs: list[float] | None, end_id: int) -> None:
        """Appends a sampled reply; a reply without its end token gets one with mask 0.

        verl adds no end token to a turn that was cut by its token budget; without it the next user
        turn would be glued to the middle of a sentence.
        """
        if logprobs is None and token_ids:
            self.logprobs = None
        builder = self._loop.continuous_token_builder
        # Not through verl's `ct_merge_assistant_token`: to join two lists, a thread costs more than it saves.
        merged = builder.merge_assistant_tokens(self.ids, token_ids)
        self.mask, self.logprobs = builder.align_response_metadata(
            merged,
            self.mask,
            self.logprobs,
            assistant_logprobs=logprobs if self.logprobs is not None else None,
        )
        self.ids = merged.token_ids
        if not token_ids or token_ids[-1] != end_id:
            self.ids.append(end_id)
            self.mask.append(0)
            if self.logprobs is not None:
                self.logprobs.append(0.0)
        self.messages.append({"role": "assistant", "content": text})

    async def append_question(self, question: Question) -> None:
        """Appends a user turn and the generation prompt after it, all with mask 0."""
        updated = [*self.messages, question.message]
        if question.shared:
            builder = self._loop.continuous_token_builder
            # The second half of the builder's `merge_context_tokens`; the first half was `tokenise`.
            merged = builder._merge_context_token_ids(
                self.ids, question.ids, previous_messages=self.messages, appended_messages=[question.message]
            )
            self.mask, self.logprobs = builder.align_response_metadata(merged, self.mask, self.logprobs)
        else:
            merged, self.mask, self.logprobs = await self._loop.ct_merge_context_msg(
                self.messages, updated, self.ids, self.mask, self.logprobs
            )
        self.ids, self.messages = merged.token_ids, updated


async def tokenise(loop: AgentLoopBase, messages: list[Message]) -> list[Question]:
    """Tokenises user turns, each for itself, in one thread."""
    builder = loop.continuous_token_builder
    shared = history_free(builder)

    def one(message: Message) -> Question:
        return Question(message, list(builder.tokenize_context_incremental_messages([], [message])), shared)

    return await in_thread(lambda: [one(message) for message in messages])


def history_free(builder: ContinuousTokenBuilder) -> bool:
    """Whether a user turn's tokens depend on nothing before it.

    True for Qwen's families and every builder that keeps verl's own way; Gemma's, DeepSeek's and GPT-OSS's
    look at the turns before, and are asked again when a turn is appended.
    """
    kept = (
        "_merge_context_group",
        "_should_fuse_generation_prompt_with_last_group",
        "merge_context_tokens",
        "tokenize_context_incremental_messages",
    )
    return all(getattr(type(builder), name) is getattr(ContinuousTokenBuilder, name) for name in kept)


# Tokenizer -> what it made of verl's stand-in messages; a loop and its builder live for one rollout only.
_standins: WeakKeyDictionary[Any, dict[str, list[int]]] = WeakKeyDictionary()


def remember_standins(builder: ContinuousTokenBuilder) -> None:
    """Makes a builder render the messages that stand in for the history once a process.

    verl tokenises a user turn as the difference of two renderings, the stand-ins with the turn and without
    it. The second is always the same, and half of the cost.
    """
    if not history_free(builder):
        return
    known, render = _standins.setdefault(builder.tokenizer, {}), builder._render_tokens

    def remembered(messages: list[Message], *, add_generation_prompt: bool, tools: Any = None) -> list[int]:
        if add_generation_prompt or tools or not all(isinstance(m["content"], str) for m in messages):
            return render(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        key = repr((messages, builder.chat_template_kwargs))
        if key not in known:
            known[key] = render(messages, add_generation_prompt=False)
        return known[key]

    builder._render_tokens = remembered


def user_message(text: str, images: list[Any]) -> Message:
    """A chat message: plain text, or images followed by text."""
    if not images:
        return {"role": "user", "content": text}
    return {
        "role": "user",
        "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}],
    }
