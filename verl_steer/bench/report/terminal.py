"""The tables of a report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from verl_steer.bench.report.tables import Table

_STYLES = {"policy": "dim", "paper": "dim italic", "run": "bold", "plain": ""}
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")


def plain(text: str) -> str:
    """A name out of a file: no markup and no control characters, which a terminal would obey."""
    return escape(text.translate(_CONTROL))


def print_table(table: Table, console: Console, sideways: bool = False) -> None:
    """Prints one table.

    Args:
        table: What to print.
        console: Where.
        sideways: Columns become lines: for few rows and many columns.
    """
    columns: Sequence[str] = table.columns
    lines = [
        (row.label, _STYLES[row.tone], [_words(cell.text, cell.small) for cell in row.cells]) for row in table.rows
    ]
    out = RichTable(title=plain(table.title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    if sideways:
        out.add_column("")
        for label, style, _ in lines:
            out.add_column(plain(label), justify="right", header_style=style or "bold")
        for n, column in enumerate(columns):
            out.add_row(plain(column), *(cells[n] for _, _, cells in lines))
    else:
        out.add_column("")
        for column in columns:
            out.add_column(plain(column), justify="right")
        for label, style, cells in lines:
            out.add_row(plain(label), *cells, style=style)
    console.print(out)


def _words(text: str, small: str) -> str:
    interval, *more = small.split("\n")
    first = f"{plain(text)} [dim]{plain(interval)}[/]" if interval else plain(text)
    return "\n".join([first, *(f"[dim]{plain(line)}[/]" for line in more)])
