"""A Hugging Face checkpoint in this process as a `Chat`: requests under way are generated as one batch.

Decoding is what the caller says and nothing else: greedy at temperature 0, else sampling from the whole distribution
with a random stream of each request's own (Gumbel's trick), so that a reply depends on its seed and not on who shares
its batch. What a checkpoint's generation_config adds (a repetition penalty, top-p) is left out: it would be decoding
that the run folder does not record.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch

from verl_steer.chat.client import CallOptions, Message, seed_of
from verl_steer.chat.outcome import ChatResult, Outcome
from verl_steer.local.checkpoint import model_of, weights_hash
from verl_steer.local.constrained import Constrained, Grammars, SchemaError
from verl_steer.local.tokens import ConversationEncoder, Encoded, PromptError, batch
from verl_steer.torchvision_ops import ensure_torchvision

_GATHER_S = 0.01  # requests that come within it share a batch


@dataclass(eq=False)
class _Waiting:
    messages: Sequence[Message]
    seed: int
    max_tokens: int
    temperature: float
    schema: dict[str, Any] | None
    answer: asyncio.Future[ChatResult]
    since: float


class LocalChat:
    """`Chat` played by transformers' `generate`.

    Args:
        folder: A Hugging Face folder (see `checkpoint.find`); loaded at the first request.
        name: Of the model.
        batch_size: Requests generated at once.
        device: "auto": a GPU if there is one.
        dtype: "auto": float32 on the CPU, bfloat16 on a GPU; else a name of torch's.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    def __init__(
        self, folder: Path, name: str, *, batch_size: int = 16, device: str = "auto", dtype: str = "auto"
    ) -> None:
        if batch_size < 1:  # nobody would ever be chosen, and every request wait for ever
            raise ValueError(f"batch_size={batch_size}: give 1 or more")
        self.model = name
        self.folder = folder
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.dtype = ("float32" if self.device == "cpu" else "bfloat16") if dtype == "auto" else dtype
        self._batch_size = batch_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-model")
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._stop = threading.Event()
        self._loaded: _Loaded | None = None

    async def complete(self, messages: Sequence[Message], **call: Unpack[CallOptions]) -> ChatResult:
        """As `ChatClient.complete`; a computation in this process has no deadline."""
        seed, schema = seed_of(call["key"]), call.get("schema")
        return await self.reply(
            messages, seed, call["max_tokens"], call.get("temperature", 0.0), schema.schema if schema else None
        )

    async def load(self) -> None:
        """Loads the model now, and not at the first request."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def reply(
        self,
        messages: Sequence[Message],
        seed: int,
        max_tokens: int,
        temperature: float = 0.0,
        schema: dict[str, Any] | None = None,
    ) -> ChatResult:
        """One completion, by its seed instead of its key; with a JSON schema, one that follows it."""
        future: asyncio.Future[ChatResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(messages, seed, max_tokens, temperature, schema, future, time.perf_counter()))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def aclose(self) -> None:
        """Ends a generation under way at its next token."""
        self._stop.set()
        if self._worker is not None:
            self._worker.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            # One length a batch: a long one would keep short ones waiting.
            limit = self._waiting[0].max_tokens
            chosen = [w for w in self._waiting if w.max_tokens == limit][: self._batch_size]
            self._waiting = [w for w in self._waiting if w not in chosen]
            loop = asyncio.get_running_loop()
            try:
                results = await loop.run_in_executor(self._thread, self._generate, chosen)
            except BaseException as error:
                for waiting in [*chosen, *self._waiting]:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                self._waiting = []
                raise
            for waiting, result in zip(chosen, results, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(result)

    def _load(self) -> _Loaded:
        if self._loaded is None:
            self._loaded = _Loaded(self.folder, self.device, self.dtype)
        return self._loaded

    def _generate(self, chosen: list[_Waiting]) -> list[ChatResult]:
        loaded = self._load()
        found: dict[int, ChatResult] = {}
        rows: dict[int, _Row] = {}
        for n, waiting in enumerate(chosen):
            try:
                matcher = None if waiting.schema is None else loaded.grammars.start(waiting.schema)
                prompt = loaded.encode(waiting.messages, waiting.max_tokens)
                rows[n] = _Row(prompt, waiting.seed, waiting.temperature, matcher)
            except (PromptError, SchemaError) as error:
                found[n] = ChatResult(Outcome.FAILED, detail=str(error))
        if rows:
            try:
                replies = loaded.generate(list(rows.values()), chosen[0].max_tokens, self._stop)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                replies = [ChatResult(Outcome.FAILED, detail=f"{type(error).__name__}: {error}"[:500])] * len(rows)
            found.update(zip(rows, replies, strict=True))
        now = time.perf_counter()
        return [replace(found[n], latency_s=now - waiting.since) for n, waiting in enumerate(chosen)]


@dataclass(frozen=True)
class _Row:
    """One reply to generate: its prompt, seed, temperature, and the grammar that it follows, if any."""

    prompt: Encoded
    seed: int
    temperature: float
    matcher: Any | None


class _Loaded:
    """Model and encoder."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        ensure_torchvision()
        from transformers import AutoProcessor, GenerationConfig

        self.model = model_of(folder, dtype).to(device).eval()
        self.encoder = ConversationEncoder(AutoProcessor.from_pretrained(folder))
        tokenizer = self.encoder.tokenizer
        own = self.model.generation_config
        ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        self.pad = next(t for t in (tokenizer.pad_token_id, own.pad_token_id, *self.ends) if t is not None)
        # Never a placeholder that would count as a picture, nor any other control token but the end.
        # A tokenizer's own list of special tokens may name a few of them only.
        special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = (getattr(self.model.config, f"{kind}_token_id", None) for kind in ("image", "video"))
        pictures = {int(token) for token in named if token is not None}
        forbidden = sorted((special | pictures | set(tokenizer.all_special_ids)) - self.ends)
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.pad,
            suppress_tokens=forbidden or None,
        )
        text = self.model.config.get_text_config()
        self.context = int(getattr(text, "max_position_embeddings", 0) or 2**31)

    @cached_property
    def grammars(self) -> Grammars:
        """What holds a reply to a schema; made when the first one asks for it.

        Raises:
            SchemaError: It cannot be made.
        """
        return Grammars(self.encoder.tokenizer, sorted(self.ends), self.model.get_output_embeddings().weight.shape[0])

    def encode(self, messages: Sequence[Message], max_tokens: int) -> Encoded:
        prompt = self.encoder.encode(messages)
        if prompt.length + max_tokens > self.context:
            raise PromptError(
                f"the prompt has {prompt.length} tokens; with {max_tokens} for the reply that is more than the model's "
                f"{self.context}"
            )
        return prompt

    @torch.no_grad()
    def generate(self, rows: Sequence[_Row], max_tokens: int, stop: threading.Event) -> list[ChatResult]:
        """Replies to prompts with their seeds and temperatures; what was said is remembered."""
        prompts = [row.prompt for row in rows]
        held: list[Any] = (
            [Constrained([row.matcher for row in rows], sorted(self.ends))]
            if any(row.matcher is not None for row in rows)
            else []
        )
        inputs = {name: value.to(self.model.device) for name, value in batch(prompts, self.pad).items()}
        found = self.model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            logits_processor=[*held, _Gumbel([(row.seed, row.temperature) for row in rows])],
            stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), stop.is_set(), device=ids.device)],
        )
        sampled = found[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._result(prompt, ids) for prompt, ids in zip(prompts, sampled, strict=True)]

    def _result(self, prompt: Encoded, ids: list[int]) -> ChatResult:
        end = next((n for n, token in enumerate(ids) if token in self.ends), None)
        said = ids if end is None else ids[:end]
        text = str(self.encoder.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        self.encoder.remember(prompt, text, said)
        return ChatResult(
            Outcome.OK,
            text,
            "length" if end is None else "stop",
            calls=1,
            prompt_tokens=prompt.length,
            completion_tokens=len(said) + (end is not None),
        )


class _Gumbel:
    """Turns argmax into sampling: logits / T + Gumbel noise, each row from its own stream; T = 0 stays greedy."""

    def __init__(self, rows: Sequence[tuple[int, float]]) -> None:
        self._rows = [(torch.Generator().manual_seed(seed), temperature) for seed, temperature in rows]

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        for row, (generator, temperature) in enumerate(self._rows):
            if temperature > 0:
                noise = -torch.empty(scores.shape[1]).exponential_(generator=generator).log()
                scores[row] = scores[row] / temperature + noise.to(scores.device)
        return scores


def describe(chat: LocalChat) -> dict[str, Any]:
    """What of a local model a run folder records."""
    # A folder trained into again has the same name; its replies are another model's.
    weights = weights_hash(chat.folder)
    return {
        "kind": "local",
        "model": str(chat.folder),
        "weights": weights,
        "device": chat.device,
        "dtype": chat.dtype,
    }
