"""A checkpoint behind an OpenAI-compatible server: `verl-steer serve checkpoint PATH`, on the CPU too.

Small, for trying a checkpoint as an endpoint where no serving engine is at hand. It batches what is under way and,
unlike transformers' own `serve`, continues the tokens that it sampled instead of encoding its replies again: so an
endpoint run gives what a local run gives.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from verl_steer.chat.outcome import Outcome
from verl_steer.local.chat import LocalChat


def create_app(chat: LocalChat) -> FastAPI:
    """The application around a model."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await chat.aclose()

    app = FastAPI(title="verl_steer checkpoint", lifespan=lifespan)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": chat.model, "object": "model", "owned_by": "verl_steer"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> JSONResponse:
        try:
            body = await request.json()
            asked = _read(body)
        except (ValueError, TypeError, KeyError) as error:
            return _error(400, f"not a chat request: {error}")
        if body.get("model") not in (None, chat.model):
            return _error(404, f"the model {body['model']!r} does not exist; this server has {chat.model!r}")
        found = await chat.reply(**asked)
        if found.outcome is not Outcome.OK:
            return _error(400, found.detail)
        message = {"role": "assistant", "content": found.text}
        tokens = found.prompt_tokens, found.completion_tokens
        return JSONResponse(
            {
                "id": f"chatcmpl-{time.time_ns():x}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": chat.model,
                "choices": [{"index": 0, "message": message, "finish_reason": found.finish_reason}],
                "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
            }
        )

    return app


def serve(folder: Path, host: str, port: int, name: str, batch_size: int) -> None:
    """Serves the model in a Hugging Face folder until interrupted."""
    import uvicorn

    chat = LocalChat(folder, name or folder.name, batch_size=batch_size)
    uvicorn.run(create_app(chat), host=host, port=port, log_level="warning", access_log=False)


def _read(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ValueError("messages must be a list that is not empty")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in body["messages"]):
        raise ValueError("every message must be an object with a role")
    if body.get("stream"):
        raise ValueError("stream is not supported")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 512
    temperature, seed = body.get("temperature"), body.get("seed")
    if type(limit) is not int or limit < 1:
        raise ValueError(f"max_tokens={limit!r} must be a positive integer")
    return {
        "messages": body["messages"],
        "seed": int(seed or 0) % 2**63,  # what torch's generators take; a larger one would end the whole batch
        "max_tokens": limit,
        "temperature": float(temperature if temperature is not None else 0.0),
        "schema": _schema(body.get("response_format")),
    }


def _schema(response_format: Any) -> dict[str, Any] | None:
    """The JSON schema that OpenAI's `response_format` asks for, or None: any text."""
    if response_format is None or response_format == {"type": "text"}:
        return None
    named = response_format.get("json_schema") if isinstance(response_format, dict) else None
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict) or response_format.get("type") != "json_schema":
        raise ValueError("response_format must be of type text, or json_schema with json_schema.schema")
    return schema


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)
