"""The command ``diffaccel tasks``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    tasks = commands.add_parser("tasks", help="list the tasks of code generation")
    what = tasks.add_mutually_exclusive_group(required=True)
    what.add_argument("--print", action="store_true", help="print every task's sentence")
    what.add_argument("--write", type=Path, metavar="FOLDER", help="write the two JSON files of tasks")
    tasks.set_defaults(run=_tasks)


def _tasks(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.codegen.tasks import TASK_FILES, file_text, list_text
    from pytest_diffaccel.records.jsonfile import write_text

    if parsed.print:
        sys.stdout.write(list_text())
        return 0
    parsed.write.mkdir(parents=True, exist_ok=True)
    for name in TASK_FILES:
        write_text(parsed.write / name, file_text(name))
        print(parsed.write / name)
    return 0
