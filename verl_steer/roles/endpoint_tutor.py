"""The tutor played by a vision model behind an OpenAI-compatible server.

The prompt's layout is `layout.py`'s, the reply's form `tutor_reply.py`'s; this module fills the one,
reads the other, and turns every way in which that can go wrong into a typed verdict.
"""

from __future__ import annotations

import difflib
import secrets

from verl_steer.chat.ask import Answer, ask
from verl_steer.chat.audit import Audited, audit_log
from verl_steer.chat.client import Chat, ChatClient
from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.config import TutorConfig
from verl_steer.dialogue import ImageRef, Kind, Script, UserTurn
from verl_steer.roles.fence import fence_tag, sanitise
from verl_steer.roles.layout import render
from verl_steer.roles.question import BENIGN_STRATEGIES, question_flaw
from verl_steer.roles.tutor import Assessment, Exchange, TutorRequest
from verl_steer.roles.tutor_reply import TutorReply
from verl_steer.scores import Verdict

_REASON_CHARS = 1000


class EndpointTutor:
    """`Tutor` over HTTP. One for each process: it holds the pool of connections.

    Args:
        config: The validated `steer.tutor` node, kind `endpoint`.
        max_concurrency: This process's share of the job's limit.
        backoff_s: Pause before the first retry; see `ChatClient`.
        outage_s: How long to wait while no server serves; 0: not at all.

    Raises:
        ChatConfigError: A base URL cannot be used.
    """

    def __init__(
        self, config: TutorConfig, max_concurrency: int, backoff_s: float = 0.5, outage_s: float = 0.0
    ) -> None:
        self._config = config
        self._client = ChatClient(
            config.model,
            config.base_urls,
            max_concurrency=max_concurrency,
            attempts=config.attempts,
            api_key_env=config.api_key_env,
            structured_output=config.structured_output,
            # Half of the call's time: a server that hangs leaves room for another attempt.
            attempt_timeout_s=config.timeout_s / 2 if config.attempts > 1 else None,
            backoff_s=backoff_s,
            outage_s=outage_s,
        )
        audit_dir = config.audit_dir
        self._chat: Chat = Audited(self._client, audit_log(audit_dir)) if audit_dir else self._client

    async def assess(self, request: TutorRequest) -> Assessment:
        """Judges the last reply of `request.history` and, where wanted, writes the next question.

        Raises:
            ValueError: The request cannot be rendered (no exchange; an image of unknown format).
            ChatConfigError: The API key's environment variable is not set.
            ModelOutage: No server served for `outage_s`.
        """
        answer = await ask(
            self._chat,
            render(request),
            TutorReply,
            key=request.random_key,
            deadline_s=request.deadline_s,
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            flaw=lambda reply: self._flaw(reply, request),
            within=request.within,
        )
        question, strategy = self._next_question(answer, request)
        return Assessment(
            verdict=_verdict(answer),
            next_question=question,
            strategy=strategy,
            calls=answer.chat.calls,
            prompt_tokens=answer.chat.prompt_tokens,
            completion_tokens=answer.chat.completion_tokens,
            latency_s=answer.chat.latency_s,
            waited_s=answer.chat.waited_s,
        )

    async def ping(self) -> str | None:
        """Says why the configured servers cannot serve the configured model, or None if nothing speaks against it.

        A server without a list of models passes: `probe` tells.
        """
        try:
            offers = await self._client.models()
        except ChatConfigError as error:
            return str(error)
        for url, found in offers.items():
            if isinstance(found, str):
                return found
            if found and self._config.model not in found:
                nearest = difflib.get_close_matches(self._config.model, found, n=1, cutoff=0.3)
                hint = f"did you mean {nearest[0]}?" if nearest else f"it offers {', '.join(found[:5])}"
                return f"{url} does not offer the model {self._config.model!r}; {hint}"
        return None

    async def probe(self, image: ImageRef) -> Assessment:
        """One real assessment of a made-up exchange about `image`: does the whole path work, vision included?"""
        turns = (UserTurn("What does this picture show?", (image,)), UserTurn("Which colours do you see in it?"))
        script = Script(seed_id="probe", kind=Kind.BENIGN, turns=turns)
        exchange = Exchange(turns[0].text, "It shows a picture, but I have not looked at it closely.", (image,))
        return await self.assess(
            TutorRequest(
                script=script,
                history=(exchange,),
                planned_next=turns[1],
                adapt=True,
                random_key="probe",
                fence=fence_tag(secrets.token_bytes(16), script.seed_id),
                deadline_s=self._config.timeout_s,
            )
        )

    async def aclose(self) -> None:
        """Releases connections."""
        await self._chat.aclose()

    def _next_question(self, answer: Answer[TutorReply], request: TutorRequest) -> tuple[str | None, str]:
        """The tutor's question and move; (None, "script") wherever the planned question stands."""
        reply = answer.value
        wanted = request.adapt and request.planned_next is not None
        if not wanted or reply is None or answer.chat.outcome is not Outcome.OK:
            return None, "script"
        question = sanitise(reply.next_question or "", self._config.max_question_chars).strip()
        misplaced = not request.script.kind.harmful and reply.strategy not in BENIGN_STRATEGIES
        if not question or reply.strategy == "none" or misplaced or self._flaw(reply, request):
            return None, "script"
        return question, reply.strategy

    def _flaw(self, reply: TutorReply, request: TutorRequest) -> str | None:
        """What is wrong with the question, if one is wanted at all."""
        if not request.adapt or request.planned_next is None or reply.strategy == "none":
            return None
        return question_flaw(reply.next_question, self._config.max_question_chars, request.fence)


async def verdict_of(
    chat: Chat, request: TutorRequest, max_tokens: int, temperature: float = 0.0
) -> tuple[Verdict, ChatResult]:
    """The verdict alone, from any `Chat` (a journal's, say), and what it cost: for dialogues outside training.

    Raises:
        ValueError, ChatConfigError, ModelOutage: As `EndpointTutor.assess`.
    """
    answer = await ask(
        chat,
        render(request),
        TutorReply,
        key=request.random_key,
        deadline_s=request.deadline_s,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    return _verdict(answer), answer.chat


def _verdict(answer: Answer[TutorReply]) -> Verdict:
    reply, chat = answer.value, answer.chat
    reason = sanitise(reply.reason if reply is not None else chat.detail, _REASON_CHARS)
    return Verdict(chat.outcome, reply.scores if reply is not None else None, reason)
