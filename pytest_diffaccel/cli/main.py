"""``diffaccel``: the same functions for people who do not start from pytest."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pytest_diffaccel.cli import (
    audit_command,
    compare_command,
    explain_command,
    export_command,
    generate_command,
    golden_commands,
    init_command,
    pytest_commands,
    report_command,
    tasks_command,
)
from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.words import meant

# As the shell tells the end by SIGPIPE of any other program.
_READER_GONE = 128 + 13


def command_parser() -> argparse.ArgumentParser:
    """The parser of every command; the page of options of the docs is written from it."""
    return _parser_and_commands()[0]


def _parser_and_commands() -> tuple[argparse.ArgumentParser, tuple[str, ...]]:
    """The parser, and the names of its commands."""
    parser = argparse.ArgumentParser(prog="diffaccel", description="Acceleration winners of diffusion pipelines.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    golden_commands.add_commands(commands)
    for of_command in (
        export_command,
        compare_command,
        tasks_command,
        generate_command,
        report_command,
        explain_command,
        audit_command,
        init_command,
    ):
        of_command.add_command(commands)
    pytest_commands.add_commands(commands)
    return parser, tuple(commands.choices)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; None for this process's own.

    Returns:
        The exit status: 0, 1 when a check finds differences, 2 when the command cannot be carried out, or 141 when
        nobody reads its output any more.
    """
    parser, commands = _parser_and_commands()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and not given[0].startswith("-") and given[0] not in commands:
        near = meant(given[0], {name: name for name in commands})
        parser.error(f"{given[0]!r} is no command{near}; choose from {', '.join(commands)}")
    parsed, others = parser.parse_known_args(given)
    parsed.given = given[1:]
    if others and parsed.command not in pytest_commands.COMMANDS:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        status = int(parsed.run(parsed))
        if sys.stdout is not None:  # it is closed from the start where a shell says >&-
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # who read it has seen enough, as `head` has; nothing more can be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except (OSError, ValueError) as error:
        print_lines(f"diffaccel: {_words(error)}", sys.stderr)
        return 2


def _words(error: Exception) -> str:
    """What went wrong, without the number that a system's error begins with."""
    reason, path = getattr(error, "strerror", None), getattr(error, "filename", None)
    return f"{path}: {reason}" if reason and path is not None else str(error)
