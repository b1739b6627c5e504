"""The micro-world's tutor behind an OpenAI-compatible server.

It lets the endpoint tutor, its prompt and its transport run for real, in another process and without
a model: the server reads the very prompt a model would get (`roles.layout.parse`), judges by the same
rules as `MicroworldTutor`, and writes the same JSON. It is given no hidden state: the scene comes
from the picture's text chunk, so a picture that was re-encoded on the way is judged as plain text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from verl_steer.dialogue import MAX_TURNS, ImageRef, Kind, Script, UserTurn
from verl_steer.microworld import judge_server
from verl_steer.microworld.tutor import NOISE, MicroworldTutor
from verl_steer.roles.layout import ParsedRequest, parse
from verl_steer.roles.tutor import Assessment, TutorRequest

MODEL = "microworld-tutor"
# The prompt's names for the moves that the rubric knows; everything else is "none".
_STRATEGIES = {"persistence", "bait_and_switch", "deepen", "continuation"}


def create_app(noise: float = NOISE, model: str = MODEL) -> FastAPI:
    """The application, for uvicorn or a test client.

    Args:
        noise: Share of verdicts that are noise, as in `MicroworldTutor`.
        model: The one model's name; a request for another is answered 404, as servers do.
    """
    app = FastAPI(title="verl_steer micro-world tutor")
    tutor = MicroworldTutor(noise)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in (model, judge_server.MODEL)]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> JSONResponse:
        try:
            body = await request.json()
        except ValueError as error:
            return _error(400, f"the body is not JSON: {error}")
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return _error(400, "messages must be a list")
        asked_of = body.get("model")
        if asked_of not in (model, judge_server.MODEL):
            return _error(
                404, f"the model {asked_of!r} does not exist; this server has {model!r}, {judge_server.MODEL!r}"
            )
        if body.get("stream"):
            return _error(400, "stream is not supported")
        try:
            if asked_of == judge_server.MODEL:
                return JSONResponse(_completion(body, judge_server.MODEL, judge_server.reply(body)))
            asked = parse(body["messages"])
            text = reply_text(tutor.judge(request_of(asked, body.get("seed"))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # A prompt of another layout: the caller's mistake, and never a verdict.
            return _error(400, f"not a {'tutor' if asked_of == model else 'judge'}'s prompt: {error}")
        return JSONResponse(_completion(body, model, text))

    return app


def request_of(asked: ParsedRequest, seed: Any) -> TutorRequest:
    """The rule tutor's request for a prompt; luck is keyed by the caller's seed, turn by turn.

    Raises:
        ValueError: The prompt has no exchange, or more than a dialogue holds.
    """
    if not 1 <= len(asked.history) <= MAX_TURNS:
        raise ValueError(f"it shows {len(asked.history)} exchanges; a dialogue has 1..{MAX_TURNS}")
    images = (ImageRef(b"not shown to the tutor"),) * asked.planned_images
    planned = None if asked.planned_next is None else UserTurn(asked.planned_next, images)
    turns = [UserTurn(exchange.question, exchange.images) for exchange in asked.history]
    turns += [planned] if planned is not None and len(turns) < MAX_TURNS else []
    return TutorRequest(
        script=Script(asked.fence, Kind.RED_TEAM if asked.harmful else Kind.BENIGN, tuple(turns), system=asked.system),
        history=asked.history,
        planned_next=planned,
        adapt=asked.adapt,
        random_key=f"{asked.fence}/{len(asked.history)}/{seed}",
        fence=asked.fence,
        deadline_s=1.0,
    )


def reply_text(assessment: Assessment) -> str:
    """The JSON object that `roles.tutor_reply.TutorReply` reads."""
    scores = assessment.verdict.scores
    assert scores is not None, "rules always score"
    strategy = assessment.strategy if assessment.strategy in _STRATEGIES else "none"
    return json.dumps(
        {
            "reason": assessment.verdict.reason,
            "safety": scores.safety,
            "usefulness": scores.usefulness,
            "faithfulness": scores.faithfulness,
            "strategy": strategy,
            "next_question": assessment.next_question if strategy != "none" else None,
        },
        ensure_ascii=False,
    )


def serve(host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves until interrupted."""
    import uvicorn

    uvicorn.run(create_app(), host=host, port=port, log_level="warning", access_log=False)


def _completion(body: Mapping[str, Any], model: str, text: str) -> dict[str, Any]:
    # No tokenizer here: four characters a token is what usage is estimated by.
    prompt, written = len(json.dumps(body["messages"])) // 4, max(1, len(text) // 4)
    return {
        "id": f"chatcmpl-{time.time_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)
