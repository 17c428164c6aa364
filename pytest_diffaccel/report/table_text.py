"""Tables of rich as plain lines: the same in a terminal, in a log and in a pipe."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table_lines(table: Table, width: int) -> list[str]:
    """The table's lines, without colour, at most ``width`` characters each."""
    from rich.console import Console

    text = StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return [line.rstrip() for line in text.getvalue().rstrip().splitlines()]
