"""STEER-Bench as a task of inspect_ai: `inspect eval verl_steer/steer_bench -T bench=FILE …` (extra `bench`).

The dialogues, prompts and verdicts are those of `verl-steer bench`; inspect brings its models, limits, logs and
viewer. A dialogue with a turn that was not judged is `Score.unscored`: it is in the log with its reason and out of
every mean.

    inspect eval verl_steer/steer_bench -T bench=bench.parquet --model openai/gpt-4o --model-role grader=openai/o3
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Model,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import JSONSchema

from verl_steer.bench import rows
from verl_steer.bench.files import BenchFile
from verl_steer.bench.inference import fence_key, thinking_of
from verl_steer.bench.metrics import HELPFUL, SAFE
from verl_steer.bench.models import Endpoint, judge_of
from verl_steer.chat.client import CallOptions, Message, seed_of
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.dialogue import Script, UserTurn
from verl_steer.roles.fence import fence_tag
from verl_steer.roles.judge import EndpointJudge, Judgement, JudgeRequest, TurnJudge
from verl_steer.roles.layout import data_url
from verl_steer.roles.tutor import Exchange

GRADER = "grader"
_DEADLINE_S = 240.0


@task
def steer_bench(
    bench: str,
    judge: str = "",
    judge_url: str = "",
    judge_key_env: str | None = None,
    max_tokens: int = 768,
    temperature: float = 0.0,
    system: str | None = None,
    image_preset: str = "keep",
) -> Task:
    """Multi-turn harmlessness (-3..3) and helpfulness (0..3) of every reply.

    Args:
        bench: A bench file, as `verl-steer bench run` takes it.
        judge: "": inspect's model role `grader`; else a model at `judge_url`, or microworld-oracle.
        judge_url: URL of the judge's OpenAI-compatible server.
        judge_key_env: Name of the environment variable with its key.
        max_tokens: Of each reply.
        temperature: Of the model's sampling.
        system: System prompt in place of the rows' own.
        image_preset: See `verl-steer bench run`.
    """
    described, scripts = _opened(bench, image_preset)
    samples = [
        Sample(
            id=script.seed_id,
            input=script.turns[0].text,
            metadata={"kind": script.kind.value, "category": script.category, "turns": len(script.turns)},
        )
        for script in scripts.values()
    ]
    return Task(
        dataset=MemoryDataset(samples, name=Path(bench).stem),
        solver=follow_script(bench, image_preset, system),
        scorer=turn_scores(bench, image_preset, judge, judge_url, judge_key_env, system),
        config=GenerateConfig(max_tokens=max_tokens, temperature=temperature),
        metadata={"bench_sha256": described.sha256, "rejected_rows": described.rows - len(scripts)},
    )


@solver
def follow_script(bench: str, image_preset: str = "keep", system: str | None = None) -> Solver:
    """Asks the scripted questions one after the other; for the arguments see `steer_bench`."""
    _, scripts = _opened(bench, image_preset)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        script = scripts[str(state.sample_id)]
        said = script.system if system is None else system
        state.messages = [ChatMessageSystem(content=said)] if said else []
        for turn in script.turns:
            state.messages.append(_asked(turn))
            state = await generate(state)
        return state

    return solve


@scorer(metrics={"*": [mean(), stderr()]})
def turn_scores(bench: str, image_preset: str, judge: str, url: str, key_env: str | None, system: str | None) -> Scorer:
    """Judges every reply; a dialogue's values are its turns' means and whether they pass."""
    described, scripts = _opened(bench, image_preset)
    key = fence_key(described)

    async def score(state: TaskState, target: Target) -> Score:
        script = scripts[str(state.sample_id)]
        replies = [reply_of(m) for m in state.messages if isinstance(m, ChatMessageAssistant)]
        chosen = _judge(judge, url, key_env)
        try:
            verdicts = [await chosen.judge(r) for r in _requests(script, replies, key, system)]
        finally:
            await chosen.aclose()
        return summed(script, verdicts)

    return score


def reply_of(message: ChatMessageAssistant) -> str:
    """Everything that the model wrote, its thinking in the tags that inspect takes out of a reply: what is said there is judged too."""
    if isinstance(message.content, str):
        return message.content
    # Reasoning has the tags in its `text`; of a redacted one, what the provider shows.
    parts = [part for part in message.content if isinstance(part, ContentReasoning | ContentText)]
    return "\n".join(part.text for part in parts)


def summed(script: Script, verdicts: Sequence[Judgement]) -> Score:
    """A dialogue's score, or an unscored one where a verdict is missing."""
    told: dict[str, Any] = {
        "verdicts": [
            {"outcome": v.outcome.value, "harmlessness": v.harmlessness, "helpfulness": v.helpfulness, "why": v.reason}
            for v in verdicts
        ]
    }
    harmlessness = [v.harmlessness for v in verdicts if v.harmlessness is not None]
    helpfulness = [v.helpfulness for v in verdicts if v.helpfulness is not None]
    missing = len(script.turns) - len(harmlessness)
    if missing:
        why = f"{missing} of {len(script.turns)} turns have no verdict"
        return Score.unscored(reason="missing_verdict", explanation=why, metadata=told)
    mean_harmlessness, mean_helpfulness = (sum(v) / len(v) for v in (harmlessness, helpfulness))
    safe, helpful = mean_harmlessness >= SAFE, mean_helpfulness >= HELPFUL
    return Score(
        value={
            "harmlessness": mean_harmlessness,
            "helpfulness": mean_helpfulness,
            "safe_pass": float(safe),
            "helpful_pass": float(helpful),
            "joint_pass": float(safe and helpful),
        },
        metadata=told,
    )


class InspectChat:
    """One of inspect's models as a `Chat`."""

    def __init__(self, model: Model) -> None:
        self.model = model.name
        self._model = model

    async def complete(self, messages: Sequence[Message], **call: Unpack[CallOptions]) -> ChatResult:
        """As `ChatClient.complete`; limits and retries are inspect's."""
        schema = call.get("schema")
        config = GenerateConfig(
            max_tokens=call["max_tokens"],
            temperature=call.get("temperature", 0.0),
            seed=seed_of(call["key"]),
            response_schema=None
            if schema is None
            else ResponseSchema(name=schema.name, json_schema=JSONSchema.model_validate(schema.schema)),
        )
        found = await self._model.generate([_message(m) for m in messages], config=config)
        usage = found.usage
        outcome = {"content_filter": Outcome.BLOCKED}.get(str(found.stop_reason), Outcome.OK)
        if found.error:
            outcome = Outcome.FAILED
        return ChatResult(
            outcome,
            found.completion,
            str(found.stop_reason),
            calls=1,
            prompt_tokens=usage.input_tokens if usage else 0,
            completion_tokens=usage.output_tokens if usage else 0,
            latency_s=found.time or 0.0,
            detail=found.error or "",
        )

    async def aclose(self) -> None:
        """The model is inspect's to close."""


@functools.lru_cache(maxsize=4)
def _opened(bench: str, image_preset: str) -> tuple[BenchFile, dict[str, Script]]:
    """What is asked, read once; inspect wants arguments that can be written to its log, so it gets the file's name."""
    return rows.describe(Path(bench)), rows.scripts(Path(bench), image_preset)


def _judge(judge: str, url: str, key_env: str | None) -> TurnJudge:
    if not judge:
        return EndpointJudge(InspectChat(get_model(role=GRADER)))
    endpoint = Endpoint(judge, (url,), key_env, timeout_s=_DEADLINE_S, outage_s=0.0) if url else None
    return judge_of(judge, endpoint, None, 1024)


def _requests(script: Script, replies: Sequence[str], key: bytes, system: str | None) -> list[JudgeRequest]:
    history: tuple[Exchange, ...] = ()
    found = []
    for number, (turn, reply) in enumerate(zip(script.turns, replies, strict=False), 1):
        history = (*history, Exchange(turn.text, reply, turn.images, thinking_of(reply)))
        found.append(
            JudgeRequest(
                script=script,
                system=script.system if system is None else system,
                history=history,
                random_key=f"0|{script.seed_id}|{number}",
                fence=fence_tag(key, script.seed_id),
                deadline_s=_DEADLINE_S,
            )
        )
    return found


def _asked(turn: UserTurn) -> ChatMessageUser:
    shown: list[Content] = [ContentImage(image=data_url(image)) for image in turn.images]
    return ChatMessageUser(content=[*shown, ContentText(text=turn.text)] if shown else turn.text)


def _message(message: Message) -> ChatMessage:
    content = message["content"]
    if isinstance(content, list):
        content = [_part(part) for part in content]
    kinds = {"system": ChatMessageSystem, "assistant": ChatMessageAssistant}
    made: ChatMessage = kinds.get(str(message["role"]), ChatMessageUser)(content=content)
    return made


def _part(part: dict[str, Any]) -> Content:
    if part["type"] == "image_url":
        return ContentImage(image=part["image_url"]["url"])
    return ContentText(text=part["text"])
