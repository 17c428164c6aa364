"""``diffaccel``: the same functions for people who do not start from pytest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_diffaccel.codegen.commands import add_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; None for this process's own.

    Returns:
        The exit status: 0, 1 when a check finds differences, or 2 when the command cannot be carried out.
    """
    parser = argparse.ArgumentParser(prog="diffaccel", description="Acceleration winners of diffusion pipelines.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print the golden database as tables")
    show.add_argument("--golden", type=Path, default=Path("golden/search_params.json"), metavar="FILE")
    show.add_argument("--pipe", help="only this pipe")
    show.add_argument("--summary", action="store_true", help="one row an accelerator and target, over all cells")
    show.set_defaults(run=_show)
    add_commands(commands)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except (OSError, ValueError) as error:
        print(f"diffaccel: {error}", file=sys.stderr)
        return 2


def _show(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.records.golden_file import read_environments, read_golden
    from pytest_diffaccel.report.golden_summary import summary_table
    from pytest_diffaccel.report.winners import winners_table

    entries = {key: entry for key, entry in read_golden(parsed.golden).items() if parsed.pipe in (None, key.pipe)}
    if not entries:
        raise ValueError(f"{parsed.golden} has no winners to show; record some with: pytest benches")
    if parsed.summary:
        print("\n".join(summary_table(entries)))
        return 0
    print("\n".join(winners_table(entries, read_environments(parsed.golden))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
