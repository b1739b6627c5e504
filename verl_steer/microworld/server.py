"""The micro-world's roles behind one OpenAI-compatible server: the model's name says which role is played.

It lets every endpoint role, its prompt and its transport run for real, in another process and without a
model: each handler reads the very prompt a model would get and writes what a model would write, by rules. They
are given no hidden state: the scene comes from the picture's text chunk, so a picture that was re-encoded on the
way is taken as any other picture, and the talk about it as plain text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from verl_steer.microworld import judge_server, speakers, writers
from verl_steer.microworld.tutor import NOISE
from verl_steer.microworld.tutor_server import tutor

MODEL = "microworld-tutor"
#: A request's body -> the reply's text. ValueError, KeyError, TypeError, AttributeError: no prompt of this role.
Handler = Callable[[Mapping[str, Any]], str]


def registry(noise: float = NOISE) -> dict[str, Handler]:
    """Model name -> who plays it.

    Args:
        noise: Share of the tutor's verdicts that are noise, as in `MicroworldTutor`.
    """
    return {
        MODEL: tutor(noise),
        "microworld-probe": writers.probe,
        "microworld-generator": writers.generator,
        "microworld-forensics": writers.forensics,
        "microworld-planner": writers.planner,
        "microworld-red": writers.red,
        "microworld-blue": speakers.blue,
        "microworld-target": speakers.target,
        "microworld-success": speakers.success,
        judge_server.MODEL: judge_server.reply,
    }


def create_app(noise: float = NOISE, handlers: Mapping[str, Handler] | None = None) -> FastAPI:
    """The application, for uvicorn or a test client.

    Args:
        noise: See `registry`.
        handlers: Instead of the registry's. A request for another model is answered 404, as servers do.
    """
    app = FastAPI(title="verl_steer micro-world")
    served = dict(handlers if handlers is not None else registry(noise))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "owned_by": "verl_steer"} for name in served],
        }

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> JSONResponse:
        try:
            body = await request.json()
        except ValueError as error:
            return _error(400, f"the body is not JSON: {error}")
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            return _error(400, "messages must be a list")
        if (handler := served.get(str(body.get("model")))) is None:
            return _error(404, f"the model {body.get('model')!r} does not exist; this server has {', '.join(served)}")
        if body.get("stream"):
            return _error(400, "stream is not supported")
        try:
            text = handler(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # A prompt of another layout: the caller's mistake, and never an answer.
            return _error(400, f"not a prompt of {body['model']}: {error}")
        return JSONResponse(_completion(body, text))

    return app


def serve(host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves until interrupted."""
    import uvicorn

    uvicorn.run(create_app(), host=host, port=port, log_level="warning", access_log=False)


def _completion(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    # No tokenizer here: four characters a token is what usage is estimated by.
    prompt, written = _chars(body["messages"]) // 4, max(1, len(text) // 4)
    return {
        "id": f"chatcmpl-{time.time_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


def _chars(node: Any) -> int:
    """Characters of all texts in some messages."""
    if isinstance(node, str):
        return len(node)
    if isinstance(node, Mapping):
        return sum(map(_chars, node.values()))
    return sum(map(_chars, node)) if isinstance(node, list) else 0


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)
