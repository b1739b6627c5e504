"""The command `verl-steer`: doctor, data, synth, bench, stages, records, serve. Each command loads only what it needs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_steer.bench.commands import add as add_bench
from verl_steer.bench.report_commands import add_report_commands
from verl_steer.data.commands import add as add_data
from verl_steer.records_commands import add as add_records
from verl_steer.stages.commands import add as add_stages
from verl_steer.synthesis.commands import add as add_synth
from verl_steer.synthesis.disjoint_command import add as add_disjoint


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 141, as of what SIGPIPE ends, if the reader of its output has gone (`| head`)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        result: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verl-steer", description="Plugins that align models over whole conversations with verl."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="check this machine, a recipe and its tutor before a run")
    doctor.add_argument("overrides", nargs="*", help="as given to main_ppo; default: +recipe=steer_grpo")
    doctor.add_argument("--config-dir", type=Path, help="a folder that holds recipe/NAME.yaml of your own")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument(
        "--canaries", action="store_true", help="test the tutor as a judge instead: labelled and hostile replies"
    )
    doctor.add_argument("--canary-file", type=Path, help="labelled turns of your own, JSONL (docs/canaries.md)")
    doctor.add_argument(
        "--canary-attacks", type=int, default=4, metavar="N", help="hostile variants of each case (default 4)"
    )
    doctor.set_defaults(run=_doctor)

    add_disjoint(add_data(commands))
    add_synth(commands)
    add_stages(commands)
    add_report_commands(add_bench(commands))

    add_records(commands)

    serve = commands.add_parser("serve", help="serve the embedded models, or a checkpoint").add_subparsers(
        required=True, metavar="WHAT"
    )
    microworld = serve.add_parser(
        "microworld",
        help="every role by the micro-world's rules, OpenAI-compatible; the model's name is the role (microworld-tutor, …)",
    )
    microworld.add_argument("--host", default="127.0.0.1")
    microworld.add_argument("--port", type=int, default=8000)
    microworld.set_defaults(run=_serve)
    checkpoint = serve.add_parser("checkpoint", help="a checkpoint by transformers, OpenAI-compatible; on the CPU too")
    checkpoint.add_argument("path", type=Path, help="a Hugging Face folder, a global_step_N, or a run's folder")
    checkpoint.add_argument("--host", default="127.0.0.1")
    checkpoint.add_argument("--port", type=int, default=8000)
    checkpoint.add_argument("--name", default="", help="name of the model (default: the folder's)")
    checkpoint.add_argument("--batch-size", type=int, default=16, help="requests generated at once (default 16)")
    checkpoint.set_defaults(run=_serve_checkpoint)
    return parser


def _doctor(arguments: argparse.Namespace) -> int:
    overrides = arguments.overrides or ["+recipe=steer_grpo"]
    if arguments.canaries:
        return _canaries(arguments, overrides)
    if arguments.canary_file is not None:
        sys.stderr.write("verl-steer: --canary-file does nothing without --canaries; add it\n")
        return 2
    from verl_steer.plugin.doctor import run_doctor
    from verl_steer.plugin.findings import as_json

    report = as_json(run_doctor(overrides, arguments.config_dir))
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        _print_findings(report["findings"])
    return 0 if report["ok"] else 1


def _canaries(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from verl_steer.plugin.canary_check import run_canaries
    from verl_steer.plugin.findings import as_json
    from verl_steer.testing.canary_table import print_report

    if arguments.canary_attacks < 0:
        sys.stderr.write(f"verl-steer: --canary-attacks={arguments.canary_attacks}: give 0 or more\n")
        return 2
    try:
        findings, reports = run_canaries(
            overrides, arguments.config_dir, arguments.canary_file, arguments.canary_attacks
        )
    except KeyboardInterrupt:
        sys.stderr.write("verl-steer: stopped; nothing was written, and no report is made of a part\n")
        return 130
    found = as_json(findings)
    found["ok"] = found["ok"] and not any(report.failures for report in reports)
    found["canaries"] = [report.to_json() for report in reports]
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        _print_findings(found["findings"])
        for report in reports:
            print_report(report)
    return 0 if found["ok"] else 1


def _print_findings(findings: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    colours = {"ok": "green", "fail": "red", "note": "yellow"}
    for finding in findings:
        table.add_row(
            f"[{colours[finding['status']]}]{finding['status']}[/]", finding["name"], escape(finding["detail"])
        )
    Console().print(table)


def _serve(arguments: argparse.Namespace) -> int:
    import importlib

    importlib.import_module("verl_steer.microworld.server").serve(arguments.host, arguments.port)
    return 0


def _serve_checkpoint(arguments: argparse.Namespace) -> int:
    from verl_steer.local.checkpoint import CheckpointError, find

    if arguments.batch_size < 1:
        sys.stderr.write(f"verl-steer: --batch-size {arguments.batch_size}: give 1 or more\n")
        return 2
    try:
        folder = find(arguments.path)
    except CheckpointError as error:
        sys.stderr.write(f"verl-steer: {error}\n")
        return 2
    from verl_steer.local.server import serve

    serve(folder, arguments.host, arguments.port, arguments.name, arguments.batch_size)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
