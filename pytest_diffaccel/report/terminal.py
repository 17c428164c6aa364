"""Where reports write their lines: pytest's terminal reporter, or nowhere, where pytest was told to have none."""

from __future__ import annotations

from typing import Protocol


class Terminal(Protocol):
    """What is needed of pytest's terminal reporter.

    Attributes:
        showfspath: whether each file's name is printed before its cases; it would come between our lines.
    """

    showfspath: bool

    @property
    def isatty(self) -> bool:
        """Whether a person watches."""

    def write_line(self, line: str) -> None:
        """Write a line of its own."""

    def rewrite(self, line: str, *, erase: bool = ...) -> None:
        """Replace the line just written."""

    def section(self, title: str) -> None:
        """Write a heading."""

    def flush(self) -> None:
        """Show now what was written."""


class NoTerminal:
    """Shows nothing: pytest was started with ``-p no:terminal``."""

    showfspath = False
    isatty = False

    def write_line(self, line: str) -> None:
        """Show nothing."""

    def rewrite(self, line: str, *, erase: bool = False) -> None:
        """Show nothing."""

    def section(self, title: str) -> None:
        """Show nothing."""

    def flush(self) -> None:
        """Nothing waits to be shown."""
