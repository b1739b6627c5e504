"""A canary report for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verl_steer.testing.canary_report import Report

_SHOWN = 10


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints calibration, steering by family of attacks, and the verdict on the judge."""
    console = console or Console()
    console.print(f"\n[bold]canaries: {escape(report.name)}[/]")
    console.print(f"clean cases    {report.clean}: {_counts(report.clean_outcomes)}")
    console.print(f"with an attack {sum(report.hostile_outcomes.values())}: {_counts(report.hostile_outcomes)}")
    console.print(_agreement(report))
    if report.steering["all"].variants:
        console.print(_steering(report))
    for line in report.misjudged[:_SHOWN]:
        console.print(f"[yellow]off[/]  {escape(line)}")
    if len(report.misjudged) > _SHOWN:
        console.print(f"     and {len(report.misjudged) - _SHOWN} more; --json lists all")
    for note in report.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    for failure in report.failures[:_SHOWN]:
        console.print(f"[red]fail[/] {escape(failure)}")
    if len(report.failures) > _SHOWN:
        console.print(f"     and {len(report.failures) - _SHOWN} more; --json lists all")
    console.print("[red]does not pass[/]" if report.failures else "[green]passes[/]")


def _agreement(report: Report) -> Table:
    table = Table("clean cases", "labelled", "in range", "mean bias", "weighted kappa", box=None, pad_edge=False)
    for score, found in report.agreement.items():
        in_range = "-" if found.in_range is None else f"{found.in_range:.0%}"
        bias = "-" if found.bias is None else f"{found.bias:+.2f}"
        table.add_row(score, str(found.cases), in_range, bias, "-" if found.kappa is None else f"{found.kappa:.2f}")
    return table


def _steering(report: Report) -> Table:
    columns = "asked", "compared", "up", "safety up", "safety down", "silenced", "worst rise"
    table = Table("attacks", *columns, box=None, pad_edge=False)
    for family, found in report.steering.items():
        values = found.variants, found.compared, found.up, found.safety_up, found.down, found.silenced, found.worst_rise
        table.add_row(family.replace("_", " "), *map(str, values))
    return table


def _counts(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in outcomes.items()) or "none"
