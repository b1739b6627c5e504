"""The command `verl-steer bench run`, and where the other actions of `bench` are added."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_steer.bench.call_options import add_calls, check_numbers, endpoint_of
from verl_steer.bench.console import guarded, in_a_line, progress_of
from verl_steer.bench.judge_commands import add_judge_commands


def add(commands: Any) -> Any:
    """Adds `bench` to the subparsers of `verl-steer`; returns its own, for the actions of other modules."""
    actions = commands.add_parser("bench", help="STEER-Bench: play dialogues, judge every turn").add_subparsers(
        required=True, metavar="ACTION"
    )
    _add_run(actions.add_parser("run", help="play a bench with a model into a run folder"))
    add_judge_commands(actions)
    return actions


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("bench", type=Path, help="a bench, script or rl split (parquet), or an exported bench file")
    run.add_argument("--out", required=True, type=Path, metavar="DIR", help="the run's folder; again: goes on in it")
    who = run.add_mutually_exclusive_group(required=True)
    who.add_argument("--url", action="append", default=[], help="an OpenAI-compatible server; several: repeat")
    who.add_argument("--checkpoint", type=Path, help="a Hugging Face folder, a global_step_N, or a training run's")
    who.add_argument("--policy", help="a constant policy, or all: each into a folder of its own in DIR")
    run.add_argument("--model", default="", help="the model's name on its server")
    run.add_argument("--name", default="", help="of the model in tables (default: its own)")
    run.add_argument("--system", help="a system prompt instead of the rows' own ('' for none)")
    run.add_argument("--max-tokens", type=int, default=768, help="of each reply (default 768)")
    run.add_argument("--temperature", type=float, default=0.0)
    run.add_argument("--seed", type=int, default=0, help="of the model's sampling and the attacker's choices")
    run.add_argument("--image-preset", default="keep", help="keep | max512-pad386 | area338-512")
    run.add_argument("--mode", choices=("static", "adaptive"), default="static")
    run.add_argument("--attacker", default="microworld", help="who rewrites the questions in adaptive mode")
    run.add_argument("--attacker-url", action="append", default=[], help="the attacker's server; several: repeat")
    run.add_argument("--attacker-key-env", help="NAME of the variable that holds the attacker's API key")
    run.add_argument("--batch-size", type=int, default=16, help="of a checkpoint (default 16)")
    run.add_argument("--device", default="auto", help="of a checkpoint: auto | cpu | cuda")
    run.add_argument("--dtype", default="auto", help="of a checkpoint: auto | float32 | bfloat16 | float16")
    add_calls(run, concurrency=16)
    run.set_defaults(run=guarded(_run))


def _run(arguments: argparse.Namespace) -> int:
    from verl_steer.bench import rows
    from verl_steer.bench.lines import BenchError
    from verl_steer.bench.policies import ConstantPolicy, policies_of

    check_numbers(arguments, "batch_size")
    if not 0 <= arguments.temperature < float("inf"):
        raise BenchError(f"--temperature {arguments.temperature}: give 0 (greedy) or more")
    bench = rows.describe(arguments.bench)
    if not arguments.policy:
        return _play(arguments, bench, arguments.out, *_model(arguments))
    sources = {item.script.source for item in rows.items(arguments.bench) if isinstance(item, rows.Item)}
    policies = policies_of(sources)
    one = arguments.policy != "all"
    status = 0
    for name in [arguments.policy] if one else policies:
        policy = ConstantPolicy(name, policies)
        described = {"kind": "policy", "model": name, "reply": policy.reply}
        status |= _play(arguments, bench, arguments.out if one else arguments.out / name, policy, described)
    return status


def _model(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model as a `Chat`, and what of it is recorded."""
    from verl_steer.bench.lines import BenchError
    from verl_steer.bench.models import cached

    if arguments.checkpoint is not None:
        from verl_steer.local.checkpoint import find

        folder = find(arguments.checkpoint)
        from verl_steer.local.chat import LocalChat, describe

        chat = LocalChat(
            folder,
            arguments.name or folder.name,
            batch_size=arguments.batch_size,
            device=arguments.device,
            dtype=arguments.dtype,
        )
        return chat, describe(chat)
    if not arguments.model:
        raise BenchError("--url needs --model, the name under which the server offers the model")
    endpoint = endpoint_of(arguments, arguments.model, arguments.url, arguments.api_key_env)
    return cached(endpoint.client(), arguments.cache, arguments.name), endpoint.describe()


def _play(arguments: argparse.Namespace, bench: Any, folder: Path, chat: Any, model: dict[str, Any]) -> int:
    from verl_steer.bench.files import Run, accounted
    from verl_steer.bench.run import begin, play_bench, versions

    attacker, described = _attacker(arguments)
    run = Run(
        name=arguments.name or chat.model,
        model=model,
        system=arguments.system,
        decoding={"max_tokens": arguments.max_tokens, "temperature": arguments.temperature},
        image_preset=arguments.image_preset,
        mode=arguments.mode,
        attacker=described,
        bench=bench,
        seed=arguments.seed,
        versions=versions(),
    )
    begin(folder, run)
    with progress_of(f"playing {run.name}", bench.rows) as advance:
        found = play_bench(
            folder,
            run,
            chat,
            attacker,
            arguments.concurrency,
            arguments.timeout,
            lambda played: advance(played.status),
        )
    counts = accounted(found)
    sys.stdout.write(
        f"{len(found)} rows in = {counts['done']} done + {counts['failed']} failed + {counts['rejected']} rejected "
        f"-> {folder}\n"
    )
    if attacker is not None:
        sys.stdout.write(f"  {_questions(found)}\n")
    if told := _cut(found, arguments.max_tokens):
        sys.stdout.write(f"  {told}\n")
    for reason, times in Counter(in_a_line(played.why) for played in found if played.why).most_common(5):
        sys.stdout.write(f"  {times} x {reason}\n")
    return 0 if counts["done"] else 1


def _questions(found: Sequence[Any]) -> str:
    """How many questions after a reply are the attacker's: where it gives few, the bench is nearly a static one."""
    counts = Counter(turn.strategy for played in found for turn in played.turns[1:])
    planned = {name: times for name, times in counts.items() if name.startswith("script")}
    why = ", ".join(f"{times} {name}" for name, times in sorted(planned.items(), key=lambda item: -item[1]))
    return f"{sum(counts.values()) - sum(planned.values())} of {sum(counts.values())} later questions rewritten" + (
        f"; as planned: {why}" if why else ""
    )


def _cut(found: Sequence[Any], max_tokens: int) -> str:
    """How many replies ended at the limit; "" if none did."""
    from verl_steer.bench.inference import cut_short

    replies, cut = cut_short(found)
    if not cut:
        return ""
    return (
        f"{cut} of {replies} replies ({cut / replies:.1%}) were cut at --max-tokens {max_tokens} and are judged as far as they "
        "went; a student that reasons needs more: a larger number, and another --out"
    )


def _attacker(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any] | None]:
    from verl_steer.bench.models import attacker_of, cached
    from verl_steer.bench.run import journaled_attacker

    if arguments.mode == "static":
        return None, None
    if not arguments.attacker_url:
        rules = attacker_of(arguments.attacker)
        return lambda journal: rules, {"kind": "rules", "model": arguments.attacker}
    endpoint = endpoint_of(arguments, arguments.attacker, arguments.attacker_url, arguments.attacker_key_env)
    return journaled_attacker(cached(endpoint.client(), arguments.cache)), endpoint.describe()
