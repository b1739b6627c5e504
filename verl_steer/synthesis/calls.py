"""How a row asks its roles: through the journal, with typed ends, keyed by (seed, row, step)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from verl_steer.chat.ask import ask
from verl_steer.chat.client import Chat, ChatClient
from verl_steer.chat.journal import Journal, Journaled
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.chat.structured import StrictReply
from verl_steer.chat.text import after_thinking, neutralise
from verl_steer.data.wording import clean
from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.roles.endpoint_tutor import verdict_of
from verl_steer.roles.fence import fence_tag, sanitise
from verl_steer.roles.fill import Fill, guidelines, render
from verl_steer.roles.frozen import chat_messages
from verl_steer.roles.tutor import Exchange, TutorRequest
from verl_steer.scores import TutorScores
from verl_steer.synthesis.config import Endpoint, SynthConfig

T = TypeVar("T", bound=StrictReply)


class StepFailed(Exception):
    """A step of a row has no usable answer: the row's branch ends here, with this reason.

    Attributes:
        transient: Asking again later may help.
    """

    def __init__(self, role: str, step: str, why: str, transient: bool = False) -> None:
        super().__init__(f"{step}: {role}: {why}")
        self.transient = transient


@dataclass
class Usage:
    """What a row's answers cost, replayed ones included, so that a resumed build counts the same."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, found: ChatResult) -> None:
        """One final answer."""
        self.answers += 1
        self.prompt_tokens += found.prompt_tokens
        self.completion_tokens += found.completion_tokens


class Cast:
    """The clients of a build, one for each role; of one process.

    Args:
        config: The build's.
        fence_key: Secret of the build.

    Raises:
        ConfigError: A role's settings cannot work.
    """

    def __init__(self, config: SynthConfig, fence_key: bytes) -> None:
        self.config, self.fence_key = config, fence_key
        self.endpoints = {role: config.roles.endpoint(role) for role in config.needed_roles()}
        # Roles that one model plays share its client: its connections, and its limit.
        shared: dict[Endpoint, ChatClient] = {}
        self.clients = {role: shared.setdefault(_who(e), _client(e)) for role, e in self.endpoints.items()}
        self.guidelines = guidelines(config.guidelines)

    def chats(self, journal: Journal) -> dict[str, Chat]:
        """The clients behind one journal."""
        return {role: Journaled(client, journal, role) for role, client in self.clients.items()}

    async def aclose(self) -> None:
        """Closes the connections."""
        for client in set(self.clients.values()):
            await client.aclose()


def _who(endpoint: Endpoint) -> Endpoint:
    """The settings without what belongs to a call."""
    return dataclasses.replace(endpoint, role="", kind="endpoint", temperature=0.0, max_tokens=1)


def _client(endpoint: Endpoint) -> ChatClient:
    return ChatClient(
        endpoint.model,
        endpoint.base_urls,
        max_concurrency=endpoint.concurrency,
        api_key_env=endpoint.api_key_env,
        structured_output=endpoint.structured_output,
        attempt_timeout_s=endpoint.timeout_s / 2,
        outage_s=endpoint.outage_s,
    )


class Calls:
    """The calls of one row. Its methods raise `StepFailed` where no usable answer comes.

    Args:
        cast: The build's clients.
        chats: Them, behind the journal of the row's shard.
        row: Id of the seed.
    """

    def __init__(self, cast: Cast, chats: Mapping[str, Chat], row: str) -> None:
        self.config, self.row = cast.config, row
        self.tag = fence_tag(cast.fence_key, row)
        self.usage = Usage()
        self._cast, self._chats = cast, chats

    async def ask(
        self, role: str, step: str, fill: Fill, reply: type[T], flaw: Callable[[T], str | None] = lambda _: None
    ) -> T:
        """A typed answer.

        Args:
            role: Whom to ask; a fill may be one of several prompts of a role.
            step: Names the call within the row.
            fill: What is asked.
            reply: Type of the answer.
            flaw: See `chat.ask.ask`; an answer that keeps its flaw is no answer.
        """
        settings = self._cast.endpoints[role]
        answer = await ask(
            self._chats[role],
            render(fill),
            reply,
            key=self._key(step),
            deadline_s=settings.timeout_s,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            flaw=flaw,
        )
        self.usage.add(answer.chat)
        if answer.chat.outcome is not Outcome.OK or answer.value is None:
            raise self._failed(role, step, answer.chat)
        if (wrong := flaw(answer.value)) is not None:
            raise StepFailed(role, step, f"unusable: {wrong}", answer.repair is not None and answer.repair.transient)
        return answer.value

    async def say(self, role: str, step: str, history: Sequence[Exchange], turn: UserTurn) -> str:
        """The reply of an assistant (the blue expert under its guidelines, the target) to a user turn."""
        settings = self._cast.endpoints[role]
        system = self._cast.guidelines if role == "blue" else ""
        found = await self._chats[role].complete(
            chat_messages(system, history, turn.text, turn.images),
            key=self._key(step),
            deadline_s=settings.timeout_s,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )
        self.usage.add(found)
        # A target that declines by the protocol's own field has replied; its words are what a student would see.
        if found.outcome is not Outcome.OK and not (role == "target" and found.outcome is Outcome.REFUSED):
            raise self._failed(role, step, found)
        if found.finish_reason == "length":
            raise StepFailed(role, step, f"the reply was cut at max_tokens={settings.max_tokens}")
        said = after_thinking(found.text) or found.detail
        return self.text(role, step, said, self.config.max_reply_chars)

    async def score(self, step: str, kind: Kind, history: Sequence[Exchange]) -> TutorScores | None:
        """The tutor's scores of the newest reply; None where it would not, or could not, give a verdict."""
        settings = self._cast.endpoints["tutor"]
        turns = tuple(UserTurn(exchange.question, exchange.images) for exchange in history)
        request = TutorRequest(
            script=Script(self.row, kind, turns),
            history=tuple(history),
            planned_next=None,
            adapt=False,
            random_key=self._key(step),
            fence=self.tag,
            deadline_s=settings.timeout_s,
        )
        verdict, found = await verdict_of(self._chats["tutor"], request, settings.max_tokens, settings.temperature)
        self.usage.add(found)
        if verdict.outcome.transient:
            raise self._failed("tutor", step, found)
        return verdict.scores

    def text(self, role: str, step: str, text: str, limit: int) -> str:
        """A model's text as the schemas take it: data, neutralised, not empty, whole."""
        found = clean(neutralise(text))  # never shortened: the end of such a text is nobody's
        if not found:
            raise StepFailed(role, step, "the text is empty")
        if len(found) > limit:
            raise StepFailed(role, step, f"the text has more than {limit} characters")
        return found

    def question(self, role: str, step: str, text: str) -> str:
        """A user turn that a model wrote."""
        return self.text(role, step, text, self.config.max_question_chars)

    def _key(self, step: str) -> str:
        return f"{self.config.seed}|{self.row}|{step}"

    @staticmethod
    def _failed(role: str, step: str, found: ChatResult) -> StepFailed:
        why = f"{found.outcome.value}: {sanitise(found.detail, 300)}"
        return StepFailed(role, step, why, found.outcome.transient)
