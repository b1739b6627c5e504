"""What the tutor is asked and what it answers, whoever plays it.

`Tutor` is the seam between the agent loop and its environment. The endpoint tutor
(`roles/endpoint_tutor.py`) plays it with a model over HTTP, the micro-world's rule tutor
(`microworld/tutor.py`) with rules; the loop cannot tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from verl_steer.chat.deadline import Deadline
from verl_steer.dialogue import ImageRef, Script, UserTurn
from verl_steer.scores import Verdict


@dataclass(frozen=True)
class Exchange:
    """One past turn as the tutor sees it.

    Attributes:
        question: What the user side really asked.
        images: Images shown with that question.
        reply: Everything the student wrote, thinking included.
        thinking: The part of `reply` inside the student's thinking block, or "".
    """

    question: str
    reply: str
    images: tuple[ImageRef, ...] = ()
    thinking: str = ""


@dataclass(frozen=True)
class TutorRequest:
    """One call: judge the last reply and, if there is a next turn, write its question.

    Attributes:
        script: The seed's script. Only a rule tutor may read `script.meta`.
        history: All exchanges so far; the last one's reply is the one to judge.
        planned_next: The scripted next user turn, or None after the last turn.
        adapt: Whether a stronger next question is wanted (feedback=tutor); else the script stands.
        random_key: Key of the tutor's random choices. Common to all rollouts of a seed at a turn
            (common random numbers), so that siblings differ by their replies alone.
        fence: Tag of the fence around untrusted text; unknown to the student.
        deadline_s: Seconds the tutor may take, retries included; waiting for a free slot is not counted.
        within: The dialogue's deadline, which stands still while no server of the tutor serves.
    """

    script: Script
    history: tuple[Exchange, ...]
    planned_next: UserTurn | None
    adapt: bool
    random_key: str
    fence: str
    deadline_s: float
    within: Deadline | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Assessment:
    """Verdict + next question.

    Attributes:
        verdict: The typed judgement of the last reply.
        next_question: The rewritten next question, or None: then the planned one is asked.
        strategy: The named move behind `next_question` ("script" if None).
        calls: Attempts spent.
        prompt_tokens: Tokens of all attempts' prompts, 0 if the server did not say.
        completion_tokens: Likewise for replies.
        latency_s: Wall seconds.
        waited_s: Of them, those that `TutorRequest.deadline_s` does not count.
    """

    verdict: Verdict
    next_question: str | None = None
    strategy: str = "script"
    calls: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = field(default=0.0, compare=False)
    waited_s: float = field(default=0.0, compare=False)


class Tutor(Protocol):
    """Scores every reply and writes the next, harder question."""

    async def assess(self, request: TutorRequest) -> Assessment:
        """Judges the last reply of `request.history`.

        Never raises for anything the model or the network did: that is a typed outcome. Raises only
        for errors of the caller (a configuration or programming error), and `ModelOutage` if no server
        served for `steer.tutor.outage_s`.
        """
        ...

    async def aclose(self) -> None:
        """Releases connections."""
        ...
