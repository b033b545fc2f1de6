"""Tables and JSON on standard output; text from models and tasks is never read as markup."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_MAX_PADDED = 40
"""In a pipe, cells longer than this do not make their column wider: they move the rest of their own line."""
_MIN_WIDTH = 40
"""Terminals that say they are narrower than this are not believed: a table folded to one character shows nothing."""


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """Print rows in aligned columns; numbers get three decimals, None is a dash."""
    cells = [[as_text(cell) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal:
        _print_plain(title, [list(headings), *cells])
        return
    console.width = max(console.width, _MIN_WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(Text(heading))
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)


def _print_plain(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print one line for each row, so that a pipe can search and cut them."""
    if title:
        typer.echo(title)
    columns = zip(*rows, strict=True)
    widths = [max((len(cell) for cell in column if len(cell) <= _MAX_PADDED), default=0) for column in columns]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo(line.replace("\n", " ").rstrip())


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def as_text(value: Any) -> str:
    """Return a cell's text."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
