"""Where reports write their lines: a screen on pytest's terminal reporter, or nowhere, where pytest was told of none.

Every line of ours is made to fit the terminal here. What is going on now is one live line where a person watches, a
line now and then where nobody does, and nothing under ``-q``.
"""

from __future__ import annotations

import os
import sys
import time
from shutil import get_terminal_size
from typing import Protocol, TextIO

from pytest_diffaccel.words import lines

# Without a terminal that can rewrite its line, this often.
_PLAIN_INTERVAL_S = 15.0
# Of the live line's width, what the bar takes; and at the most.
_BAR_SHARE, _LONGEST_BAR = 5, 24
# Pytest's own letter of a case that failed comes behind the live line; where it began a line, this one would stay.
_LETTERS = 2
# What takes a line off a terminal; terminals on which nothing does.
_ERASE, _DUMB = "\r\x1b[2K", ("dumb", "unknown")


class Terminal(Protocol):
    """What is needed of pytest's terminal reporter.

    Attributes:
        showfspath: whether each file's name is printed before its cases; it would come between our lines.
    """

    showfspath: bool

    @property
    def hasmarkup(self) -> bool:
        """Whether it shows colours."""

    @property
    def isatty(self) -> bool:
        """Whether a person watches."""

    def write_line(self, line: str) -> None:
        """Write a line of its own."""

    def section(self, title: str) -> None:
        """Write a heading."""

    def flush(self) -> None:
        """Show now what was written."""


class NoTerminal:
    """Shows nothing: pytest was started with ``-p no:terminal``."""

    showfspath = False
    hasmarkup = False
    isatty = False

    def write_line(self, line: str) -> None:
        """Show nothing."""

    def section(self, title: str) -> None:
        """Show nothing."""

    def flush(self) -> None:
        """Nothing waits to be shown."""


def width() -> int:
    """Characters that fit a line: 80 where nothing is known of the terminal."""
    return get_terminal_size().columns


def print_lines(text: str, file: TextIO | None = None) -> None:
    """Print lines, each made to fit.

    Args:
        text: the lines.
        file: where to; None for standard output.
    """
    for line in text.splitlines():
        print("\n".join(lines(line, width())), file=file)


class Screen:
    """What a session's reports write to.

    The live line is drawn by rich, but not by its live display: that one's thread would disturb what this very process
    times, and Ctrl-C at the wrong moment leaves it without the cursor. It is written past pytest, which would begin a
    new line with its percentage each time.

    Args:
        terminal: pytest's reporter.
        verbosity: pytest's: below 0 nothing tells how the session goes on; above, pytest's own lines tell of each case.
    """

    def __init__(self, terminal: Terminal, verbosity: int) -> None:
        self._terminal = terminal
        self._is_quiet = verbosity < 0
        self._has_live_line = terminal.isatty and verbosity == 0 and os.environ.get("TERM") not in _DUMB
        self._is_live = False
        self._shown_at = 0.0

    def begin(self) -> None:
        """Keep names of files, which pytest prints before their cases, from coming between the lines."""
        self._terminal.showfspath = False
        self.tell("")

    def write_line(self, text: str) -> None:
        """Write lines that stay, whatever the live line does."""
        self.end_live_line()
        for line in text.splitlines() or [""]:
            for part in lines(line, width()):
                self._terminal.write_line(part)
        self._terminal.flush()

    def tell(self, text: str) -> None:
        """The same of how the session goes on: not under ``-q``."""
        if not self._is_quiet:
            self.write_line(text)

    def section(self, title: str) -> None:
        """Write a heading."""
        self.end_live_line()
        self._terminal.section(title)

    def show(self, text: str, done: int, cases: int) -> None:
        """Say how far the session is.

        Args:
            text: in words.
            done: cases that ended.
            cases: of the whole session, at least 1.
        """
        if self._has_live_line and done < cases:
            self._draw(text, done, cases)
        elif self._has_live_line:  # pytest's percentage comes next
            self.end_live_line()
        elif time.monotonic() - self._shown_at > _PLAIN_INTERVAL_S:
            self._shown_at = time.monotonic()
            self.tell(text)

    def _draw(self, text: str, done: int, cases: int) -> None:
        # Here: no session without a terminal pays for it.
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row, room, bar = Table.grid(padding=(0, 1), expand=True), width() - _LETTERS, width() // _BAR_SHARE
        # How far it is, and how long it takes, stands before the first semicolon: there the bar has to give way.
        is_barred = bar + 1 + len(text.partition(";")[0]) <= room
        if is_barred:
            row.add_column(width=min(_LONGEST_BAR, bar))
        row.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        row.add_row(*([ProgressBar(cases, done)] if is_barred else []), Text(text))
        console = Console(file=sys.stdout, width=room, no_color=not self._terminal.hasmarkup)
        with console.capture() as drawn:
            console.print(row)
        self._is_live = True  # Ctrl-C may come at any moment
        sys.stdout.write(_ERASE + drawn.get().rstrip("\n"))
        sys.stdout.flush()

    def end_live_line(self) -> None:
        """Take the live line off the screen."""
        if self._is_live:
            sys.stdout.write(_ERASE)
            sys.stdout.flush()
            self._is_live = False
