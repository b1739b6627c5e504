"""The commands `verl-steer bench run | judge | agreement`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from verl_steer.bench.console import Advance, guarded, in_a_line, progress_of
from verl_steer.config_models import TutorConfig


def add(commands: Any) -> Any:
    """Adds `bench` to the subparsers of `verl-steer`; returns its own, for the actions of other modules."""
    actions = commands.add_parser("bench", help="STEER-Bench: play dialogues, judge every turn").add_subparsers(
        required=True, metavar="ACTION"
    )
    _add_run(actions.add_parser("run", help="play a bench with a model into a run folder"))
    _add_judge(actions.add_parser("judge", help="judge every reply of a run; again: only what is missing"))
    agreement = actions.add_parser("agreement", help="quadratic-weighted kappa of two judges of a run, as JSON")
    agreement.add_argument("folder", type=Path, metavar="DIR")
    agreement.add_argument("first")
    agreement.add_argument("second")
    agreement.set_defaults(run=guarded(_agreement))
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
    _add_calls(run, concurrency=16)
    run.set_defaults(run=guarded(_run))


def _add_judge(judge: argparse.ArgumentParser) -> None:
    judge.add_argument("folder", type=Path, metavar="DIR", help="folder of a `bench run`")
    judge.add_argument("--judge", required=True, help="the judge's name on its server, or microworld-oracle")
    judge.add_argument("--url", action="append", default=[], help="the judge's server; several: repeat")
    judge.add_argument("--name", default="", help="of its verdicts (default: the judge's name, '/' as '-')")
    judge.add_argument("--max-tokens", type=int, default=1024, help="of a verdict, reason included (default 1024)")
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument("--structured-output", default="auto", choices=TutorConfig.DIALECTS, help="see docs/tutor.md")
    judge.add_argument("--canary-attacks", type=int, default=1, metavar="N", help="hostile variants a canary")
    judge.add_argument("--no-canaries", action="store_true", help="do not test the judge first")
    _add_calls(judge, concurrency=32)
    judge.set_defaults(run=guarded(_judge))


def _add_calls(parser: argparse.ArgumentParser, concurrency: int) -> None:
    parser.add_argument("--api-key-env", help="NAME of the environment variable that holds the API key")
    parser.add_argument("--concurrency", type=int, default=concurrency, help=f"at once (default {concurrency})")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds of a call, retries included")
    parser.add_argument("--attempts", type=int, default=4, help="requests a call may cost (default 4)")
    parser.add_argument("--cache", type=Path, help="file of answers at temperature 0, shared by runs (SQLite)")


def _check_numbers(arguments: argparse.Namespace, *more: str) -> None:
    """Said before the first call: with no place at all a run would wait for ever."""
    from verl_steer.bench.lines import BenchError

    for name in ("max_tokens", "concurrency", "attempts", *more):
        if getattr(arguments, name) < 1:
            raise BenchError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: give 1 or more")
    if not 0 < arguments.timeout < float("inf"):
        raise BenchError(f"--timeout {arguments.timeout}: give a number of seconds above 0")


def _run(arguments: argparse.Namespace) -> int:
    from verl_steer.bench import rows
    from verl_steer.bench.lines import BenchError
    from verl_steer.bench.policies import ConstantPolicy, policies_of

    _check_numbers(arguments, "batch_size")
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
    from verl_steer.bench.models import Endpoint, ask_what_is_offered, cached

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
    endpoint = Endpoint(
        arguments.model,
        tuple(arguments.url),
        arguments.api_key_env,
        arguments.concurrency,
        arguments.timeout,
        arguments.attempts,
    )
    ask_what_is_offered(endpoint)
    return cached(endpoint.client(), arguments.cache), endpoint.describe()


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
    for reason, times in Counter(in_a_line(played.why) for played in found if played.why).most_common(5):
        sys.stdout.write(f"  {times} x {reason}\n")
    return 0 if counts["done"] else 1


def _attacker(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any] | None]:
    from verl_steer.bench.models import Endpoint, ask_what_is_offered, attacker_of, cached
    from verl_steer.bench.run import journaled_attacker

    if arguments.mode == "static":
        return None, None
    if not arguments.attacker_url:
        rules = attacker_of(arguments.attacker)
        return lambda journal: rules, {"kind": "rules", "model": arguments.attacker}
    endpoint = Endpoint(
        arguments.attacker,
        tuple(arguments.attacker_url),
        arguments.attacker_key_env,
        arguments.concurrency,
        arguments.timeout,
        arguments.attempts,
    )
    ask_what_is_offered(endpoint)
    return journaled_attacker(cached(endpoint.client(), arguments.cache)), endpoint.describe()


def _judge(arguments: argparse.Namespace) -> int:
    from verl_steer.bench import files
    from verl_steer.bench.inference import fence_key
    from verl_steer.bench.judging import Settings, places_of
    from verl_steer.bench.lines import BenchError
    from verl_steer.bench.models import Endpoint, ask_what_is_offered, judge_of
    from verl_steer.bench.run import judge_bench, note_judge

    _check_numbers(arguments)
    if arguments.canary_attacks < 0:
        raise BenchError(f"--canary-attacks {arguments.canary_attacks}: give 0 or more")
    run, dialogues = files.read_finished(arguments.folder)
    name = files.check_name(arguments.name or arguments.judge.replace("/", "-"), "--name")
    endpoint = None
    if arguments.url:
        endpoint = Endpoint(
            arguments.judge,
            tuple(arguments.url),
            arguments.api_key_env,
            arguments.concurrency,
            arguments.timeout,
            arguments.attempts,
            arguments.structured_output,
        )
        ask_what_is_offered(endpoint)

    def judge() -> Any:
        return judge_of(arguments.judge, endpoint, arguments.cache, arguments.max_tokens)

    entry = files.read_judges(arguments.folder).get(name)
    note_judge(arguments.folder, name, _noted(arguments, judge(), endpoint is not None, entry))
    settings = Settings(fence_key(run.bench), arguments.seed, arguments.timeout, arguments.concurrency)
    with progress_of(f"judging by {name}", len(places_of(dialogues))) as advance:
        found = judge_bench(
            arguments.folder,
            name,
            judge(),
            settings,
            lambda judged: advance(judged.outcome.value),
            hidden_state=endpoint is None,
        )
    outcomes = Counter(judged.outcome.value for judged in found)
    told = ", ".join(f"{times} {outcome}" for outcome, times in outcomes.most_common()) or "nothing to judge"
    sys.stdout.write(f"{len(found)} replies by {name}: {told} -> {arguments.folder}\n")
    if outcomes["ok"] < len(found):
        sys.stdout.write("the same command asks again for what is missing, and for nothing else\n")
    return 0 if outcomes["ok"] or not found else 1


def _noted(arguments: argparse.Namespace, judge: Any, prompted: bool, before: Any) -> Any:
    """The judge's entry in `judges.json`; its canaries are asked once for a model, a prompt and a number of attacks."""
    import asyncio

    from verl_steer.bench.files import Judge
    from verl_steer.roles.judge import prompt_sha256
    from verl_steer.testing import judge_canaries

    digest = prompt_sha256() if prompted else ""
    known = before.canaries if before is not None and before.prompt_sha256 == digest else None
    # Rules over hidden state read no prompt: there is nothing to steer.
    if not prompted or arguments.no_canaries or (known and known.get("attacks_each") == arguments.canary_attacks):
        return Judge(model=judge.model, prompt_sha256=digest, canaries=known)
    total = len(judge_canaries.judge_canaries(arguments.canary_attacks))

    async def ask(advance: Advance) -> Any:
        try:
            return await judge_canaries.run_canaries(
                judge,
                arguments.canary_attacks,
                concurrency=arguments.concurrency,
                deadline_s=arguments.timeout,
                done=lambda: advance("asked"),
            )
        finally:
            await judge.aclose()

    with progress_of("canaries", total) as advance:
        report = asyncio.run(ask(advance))
    for failure in report.failures:
        sys.stdout.write(f"canaries: {in_a_line(failure, 400)}\n")
    sys.stdout.write(f"canaries: {'does not pass' if report.failures else 'passes'} ({total} asked)\n")
    return Judge(
        model=judge.model,
        prompt_sha256=digest,
        canaries=judge_canaries.to_json(report, arguments.canary_attacks),  # type: ignore[arg-type]
    )


def _agreement(arguments: argparse.Namespace) -> int:
    from verl_steer.bench.agreement import agreement
    from verl_steer.bench.files import read_dialogues, read_verdicts
    from verl_steer.bench.judging import standing

    played, names = read_dialogues(arguments.folder), (arguments.first, arguments.second)
    first, second = (standing(played, read_verdicts(arguments.folder, name)) for name in names)
    sys.stdout.write(json.dumps(agreement(first, second).to_json(), indent=1) + "\n")
    return 0
