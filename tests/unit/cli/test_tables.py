"""Tables fit their readers: people at a terminal, and programs behind a pipe."""

import sys

import pytest
from rich.console import Console

from agentflow.cli import tables

ROWS = [("a.b", "x" * 100, "1"), ("longer.name", "int", "two\nlines")]


def test_a_pipe_gets_one_line_a_row_and_a_wide_cell_widens_its_own_line_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables.print_table(("option", "type", "value"), ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "option       type  value",
        f"a.b          {'x' * 100}  1",
        "longer.name  int   two lines",
    ]


def test_a_terminal_of_one_column_shows_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console().is_terminal and Console().width == 1
    tables.print_table(("option", "type", "value"), ROWS)
    assert "longer" in capsys.readouterr().out
    assert not sys.stdout.isatty()
