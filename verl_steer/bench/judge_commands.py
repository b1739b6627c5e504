"""The commands `verl-steer bench judge | agreement`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from verl_steer.bench.call_options import add_calls, check_numbers, endpoint_of
from verl_steer.bench.console import Advance, guarded, in_a_line, progress_of
from verl_steer.config_models import TutorConfig


def add_judge_commands(actions: Any) -> None:
    """Adds `judge` and `agreement` to the actions of `verl-steer bench`."""
    _add_judge(actions.add_parser("judge", help="judge every reply of a run; again: only what is missing"))
    agreement = actions.add_parser("agreement", help="quadratic-weighted kappa of two judges of a run, as JSON")
    agreement.add_argument("folder", type=Path, metavar="DIR")
    agreement.add_argument("first")
    agreement.add_argument("second")
    agreement.set_defaults(run=guarded(_agreement))


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
    add_calls(judge, concurrency=32)
    judge.set_defaults(run=guarded(_judge))


def _judge(arguments: argparse.Namespace) -> int:
    from verl_steer.bench import files
    from verl_steer.bench.inference import fence_key
    from verl_steer.bench.judging import Settings, places_of
    from verl_steer.bench.lines import BenchError
    from verl_steer.bench.models import judge_of
    from verl_steer.bench.run import check_judge, judge_bench, note_judge
    from verl_steer.roles.judge import prompt_sha256

    check_numbers(arguments)
    if arguments.canary_attacks < 0:
        raise BenchError(f"--canary-attacks {arguments.canary_attacks}: give 0 or more")
    run, dialogues = files.read_finished(arguments.folder)
    name = files.check_name(arguments.name or arguments.judge.replace("/", "-"), "--name")
    endpoint = None
    if arguments.url:
        endpoint = endpoint_of(
            arguments, arguments.judge, arguments.url, arguments.api_key_env, arguments.structured_output
        )

    def judge() -> Any:
        return judge_of(arguments.judge, endpoint, arguments.cache, arguments.max_tokens, arguments.name)

    digest = prompt_sha256() if endpoint is not None else ""
    check_judge(arguments.folder, name, arguments.judge, digest)  # before the canaries, which are paid for
    entry = files.read_judges(arguments.folder).get(name)
    note_judge(arguments.folder, name, _noted(arguments, judge(), digest, entry))
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


def _noted(arguments: argparse.Namespace, judge: Any, digest: str, before: Any) -> Any:
    """The judge's entry in `judges.json`; its canaries are asked until all were answered, once for a number of attacks.

    Args:
        arguments: Of the command.
        judge: Who judges.
        digest: Of its prompt; "" if it reads none.
        before: The entry that is there, of this very judge, or None.
    """
    import asyncio

    from verl_steer.bench.files import Judge
    from verl_steer.testing import judge_canaries

    known = before.canaries if before is not None else None
    # Rules over hidden state read no prompt: there is nothing to steer.
    if not digest or arguments.no_canaries or judge_canaries.stands(known, arguments.canary_attacks):
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
    found = judge_canaries.to_json(report, arguments.canary_attacks)
    if not judge_canaries.stands(found, arguments.canary_attacks):
        sys.stdout.write("canaries: some calls failed or timed out; the same command asks the canaries again\n")
    return Judge(model=judge.model, prompt_sha256=digest, canaries=found)  # type: ignore[arg-type]


def _agreement(arguments: argparse.Namespace) -> int:
    from verl_steer.bench.agreement import agreement
    from verl_steer.bench.files import read_dialogues, read_verdicts
    from verl_steer.bench.judging import standing

    played, names = read_dialogues(arguments.folder), (arguments.first, arguments.second)
    first, second = (standing(played, read_verdicts(arguments.folder, name)) for name in names)
    sys.stdout.write(json.dumps(agreement(first, second).to_json(), indent=1) + "\n")
    return 0
