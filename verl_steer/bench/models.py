"""Who is asked: from what a command line names to a `Chat`, an attacker and a judge."""

from __future__ import annotations

import asyncio
import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path

from verl_steer.bench.lines import BenchError
from verl_steer.chat.cache import Cached, ReplyCache
from verl_steer.chat.client import Chat, ChatClient
from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.roles.attacker import Attacker
from verl_steer.roles.judge import EndpointJudge, TurnJudge, is_verdict

ORACLE, WORLD = "microworld-oracle", "microworld"
JsonDict = dict[str, object]


@dataclass(frozen=True)
class Endpoint:
    """A model behind OpenAI-compatible servers.

    Attributes:
        model: Its name there.
        base_urls: All serve the same model.
        api_key_env: Name of the environment variable that holds the key, or None.
        concurrency: Requests under way at once.
        timeout_s: Of a call; half of it is an attempt's.
        attempts: Requests a call may cost.
        structured_output: As in `ChatClient`.
        outage_s: Seconds to wait while none of its servers serves; then the run ends, and goes on with the same command.
    """

    model: str
    base_urls: tuple[str, ...]
    api_key_env: str | None = None
    concurrency: int = 16
    timeout_s: float = 240.0
    attempts: int = 4
    structured_output: str = "auto"
    outage_s: float = 1800.0

    def client(self) -> ChatClient:
        """A client for it.

        Raises:
            BenchError: A URL is missing or cannot be used.
        """
        try:
            return ChatClient(
                self.model,
                self.base_urls,
                max_concurrency=self.concurrency,
                attempts=self.attempts,
                api_key_env=self.api_key_env,
                structured_output=self.structured_output,
                attempt_timeout_s=self.timeout_s / 2 if self.attempts > 1 else None,
                outage_s=self.outage_s,
            )
        except ChatConfigError as error:
            raise BenchError(f"model {self.model!r}: {error}") from error

    def describe(self) -> JsonDict:
        """What of it a run folder records; the key's name is no secret, and no part of what was run."""
        return {"kind": "endpoint", "model": self.model, "base_urls": list(self.base_urls)}


def ask_what_is_offered(endpoint: Endpoint) -> None:
    """Asks every server for its models, before anything long begins.

    Raises:
        BenchError: A server is down, refuses the key, or does not offer the model (the nearest is named).
    """

    async def models() -> dict[str, list[str] | str]:
        client = endpoint.client()
        try:
            return await client.models()
        finally:
            await client.aclose()

    try:
        offers = asyncio.run(models())
    except ChatConfigError as error:
        raise BenchError(f"model {endpoint.model!r}: {error}") from error
    for url, found in offers.items():
        if isinstance(found, str):
            raise BenchError(found)
        if found and endpoint.model not in found:
            near = difflib.get_close_matches(endpoint.model, found, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}?" if near else f"it offers {', '.join(found[:5])}"
            raise BenchError(f"{url} does not offer the model {endpoint.model!r}; {hint}")


def cached(chat: Chat, path: Path | None, name: str = "") -> Chat:
    """`chat`, asked once for equal questions at temperature 0 if a cache file is named.

    Args:
        chat: Who is asked.
        path: The file, or None.
        name: What tells this model from another one that is served under the same name, "" for nothing.
    """
    return chat if path is None else Cached(chat, ReplyCache(path, name))


def attacker_of(name: str) -> Attacker:
    """Who rewrites the questions without a model: the micro-world's rules.

    Raises:
        BenchError: There are no such rules.
    """
    if name != WORLD:
        raise BenchError(
            f"--attacker {name!r} needs --attacker-url, the URL of its server; without a URL there is {WORLD!r} only"
        )
    rules: Attacker = importlib.import_module("verl_steer.microworld.attacker").MicroworldAttacker()
    return rules


def judge_of(
    name: str, endpoint: Endpoint | None, cache: Path | None, max_tokens: int, own_name: str = ""
) -> TurnJudge:
    """Who judges: the micro-world's oracle by name, or a model.

    Args:
        name: Of the judge.
        endpoint: Its servers, or None.
        cache: File of answers, or None; of a judge it holds verdicts alone, so that what is missing is asked for again.
        max_tokens: Of a verdict.
        own_name: As `cached` takes it.
    """
    if endpoint is None:
        if name != ORACLE:
            raise BenchError(
                f"--judge {name!r} needs --url, the URL of its server; without a URL there is {ORACLE!r} only"
            )
        oracle: TurnJudge = importlib.import_module("verl_steer.microworld.judging").OracleJudge()
        return oracle
    client: Chat = endpoint.client()
    if cache is not None:
        client = Cached(client, ReplyCache(cache, own_name), is_verdict)
    return EndpointJudge(client, max_tokens)
