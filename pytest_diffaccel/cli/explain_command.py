"""The command ``diffaccel explain``: why a winner won."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_diffaccel.cli.generate_command import asked_task
from pytest_diffaccel.cli.report_command import add_places, material_of
from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.settings.work_folder import WORK

if TYPE_CHECKING:
    from pytest_diffaccel.records.golden_key import GoldenKey


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    explain = commands.add_parser("explain", help="say why a winner won, or why a target is out of reach")
    explain.add_argument("key", metavar="KEY", help="'SD1.5, DDIM, 20 steps, DeepCache, 2x', or a key of golden")
    add_places(explain)
    explain.set_defaults(run=_explain, pipe=None, sched=None, steps=None)


def _explain(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.codegen.lookup import record_command
    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.report.explanation import explain
    from pytest_diffaccel.report.html.content.findings import find

    key, material = _key(parsed.key), material_of(parsed)
    found = [one for one in find(material) if one.cell == key.cell]
    if not found:
        task = Task(key.cell, key.accelerator, key.target, (key.accelerator,))
        command = record_command([task], material.golden)
        raise ValueError(f"the store holds nothing of {key.cell}; search it first: {command}")
    print_lines("\n".join(explain(key, found[0], material, parsed.store or str(WORK.store))))
    return 0


def _key(text: str) -> GoldenKey:
    """A key of golden, or a sentence's; methods of one's own are known where their conftest file is."""
    from pytest_diffaccel.records.golden_key import GoldenKey

    return GoldenKey.parse(text) if text.startswith("(") else asked_task(text, "embedded")[0].key
