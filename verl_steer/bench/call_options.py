"""What the bench's commands that ask a model share: options, their checks, and the model's endpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_calls(parser: argparse.ArgumentParser, concurrency: int) -> None:
    """Adds the options of calls."""
    parser.add_argument("--api-key-env", help="NAME of the environment variable that holds the API key")
    parser.add_argument("--concurrency", type=int, default=concurrency, help=f"at once (default {concurrency})")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds of a call, retries included")
    parser.add_argument("--attempts", type=int, default=4, help="requests a call may cost (default 4)")
    parser.add_argument(
        "--outage",
        type=float,
        default=1800.0,
        help="seconds to wait while no server serves, then to stop (default 1800)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        help="file of answers at temperature 0, shared by runs (SQLite); a model is known by its name on the server and by "
        "--name: give each checkpoint that is served under one name a --name of its own",
    )


def check_numbers(arguments: argparse.Namespace, *more: str) -> None:
    """Said before the first call: with no place at all a run would wait for ever.

    Raises:
        BenchError: A number cannot be.
    """
    from verl_steer.bench.lines import BenchError

    for name in ("max_tokens", "concurrency", "attempts", *more):
        if getattr(arguments, name) < 1:
            raise BenchError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: give 1 or more")
    if not 0 < arguments.timeout < float("inf"):
        raise BenchError(f"--timeout {arguments.timeout}: give a number of seconds above 0")
    if not 0 <= arguments.outage < float("inf"):
        raise BenchError(f"--outage {arguments.outage}: give a number of seconds, or 0 not to wait")


def endpoint_of(
    arguments: argparse.Namespace, model: str, urls: list[str], key_env: str | None, structured: str = "auto"
) -> Any:
    """A model behind servers that are up and offer it.

    Raises:
        BenchError: One is down, or does not offer it.
    """
    from verl_steer.bench.models import Endpoint, ask_what_is_offered

    endpoint = Endpoint(
        model,
        tuple(urls),
        key_env,
        arguments.concurrency,
        arguments.timeout,
        arguments.attempts,
        structured,
        arguments.outage,
    )
    ask_what_is_offered(endpoint)
    return endpoint
