"""The command ``diffaccel generate``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.settings.work_folder import GOLDEN
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.codegen.batch import RenderedTasks
    from pytest_diffaccel.codegen.lookup import Answer
    from pytest_diffaccel.codegen.tasks import Task
    from pytest_diffaccel.records.golden_file import Golden

# More files that differ than this are counted, not listed.
_LISTED_DIFFERENCES = 20


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    generate = commands.add_parser("generate", help="write the script that a sentence asks for")
    generate.add_argument(
        "sentence", nargs="*", help="in quotes, for example: 'SDXL, DDIM, 25 steps, DeepCache, 1.5x', also in Chinese"
    )
    generate.add_argument("--ids", metavar="LIST", help="scripts of these tasks, such as 192-200, into a folder")
    generate.add_argument("--all", action="store_true", help="scripts of all tasks, into a folder")
    generate.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="file of a sentence's script (default: standard output), or folder of others (default: gt_code)",
    )
    generate.add_argument("--golden", type=Path, default=GOLDEN, metavar="FILE")
    generate.add_argument(
        "--models", default="embedded", metavar="FILE", help="models file that describes a pipe of your own"
    )
    generate.add_argument("--check", action="store_true", help="write nothing; fail when a file in the folder differs")
    generate.set_defaults(run=_generate)


def _generate(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.models.registry import know_pipes
    from pytest_diffaccel.pipes import PipeRegistry
    from pytest_diffaccel.records.golden_file import Golden

    if len(parsed.sentence) > 1:
        quoted = shlex.join(["diffaccel", "generate", " ".join(parsed.sentence)])
        raise ValueError(f"{len(parsed.sentence)} words where one sentence is due; quote it: {quoted}")
    if [bool(parsed.sentence), parsed.ids is not None, parsed.all].count(True) != 1:
        raise ValueError("give one of: a sentence in quotes, --ids 192-200, --all")
    if parsed.check and parsed.sentence:
        raise ValueError("--check compares a folder of scripts: give --ids or --all with it")
    if not parsed.sentence:
        know_pipes(PipeRegistry(), parsed.models)
        return _generate_many(parsed, Golden.read(parsed.golden))
    task, registry = asked_task(parsed.sentence[0], parsed.models)
    return _generate_one(parsed, task, Golden.read(parsed.golden), registry)


def asked_task(sentence: str, models: str) -> tuple[Task, Registry]:
    """The task of a sentence, and the methods known; conftest files are loaded where what is built in will not do."""
    from pytest_diffaccel.accelerators.registry import default_registry
    from pytest_diffaccel.codegen.parser import SentenceError, parse_task
    from pytest_diffaccel.models.registry import UnknownPipe, know_pipes
    from pytest_diffaccel.pipes import PipeRegistry

    try:
        know_pipes(PipeRegistry(), models)
        return parse_task(sentence), default_registry()
    except (SentenceError, UnknownPipe):
        from pytest_diffaccel.plugin.registered import registered_here

        registry, pipes = registered_here()
        know_pipes(pipes, models)
        return parse_task(sentence, registry.names), registry


def _generate_one(parsed: argparse.Namespace, task: Task, records: Golden, registry: Registry) -> int:
    from pytest_diffaccel.codegen.lookup import find
    from pytest_diffaccel.codegen.script import render

    answer = find(task, records, registry)
    text = render(answer)
    say_notes(answer)
    put(text, parsed.output, f"the script for: {answer.task.sentence}")
    return 0


def say_notes(answer: Answer) -> None:
    """Say on standard error what somebody who asked for a task's record should know of the one that answers it."""
    from pytest_diffaccel.codegen.script import shortfall

    key = answer.key
    if key != answer.task.key:
        holds = ", which are known to hold" if answer.attained else ""
        _say(
            f"note: {answer.task.sentence}: nothing is recorded for just that; these are the settings recorded for "
            f"{key.cell.steps} steps and a target of {key.target:g}x{holds}"
        )
    if not answer.attained:
        _say(f"note: {answer.task.sentence}: {shortfall(answer)}")
    if "stand-in" in answer.environment.model_source:
        _say("note: found on a small stand-in; search the model that you are going to use before you rely on it")


def put(text: str, output: Path | None, what: str) -> None:
    """Write a text to standard output, or to a file, of which it is said what it is."""
    if output is None:
        sys.stdout.write(text)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8", newline="\n")
    print_lines(f"{output}: {what}")


def _generate_many(parsed: argparse.Namespace, records: Golden) -> int:
    from pytest_diffaccel.codegen.batch import DEFAULT_FOLDER, RenderedTasks
    from pytest_diffaccel.codegen.tasks import all_tasks, tasks_of_ids

    folder = parsed.output or DEFAULT_FOLDER
    batch = RenderedTasks.render(all_tasks() if parsed.all else tasks_of_ids(parsed.ids), records)
    _report_gaps(batch, records)
    if not batch.scripts:
        raise ValueError("no script to write or check: golden answers none of these tasks")
    if parsed.check:
        return _report_differences(batch.differences(folder), len(batch.scripts), folder)
    batch.write(folder)
    print_lines(f"{counted(len(batch.scripts), 'script')} written to {folder}")
    return 0


def _report_gaps(batch: RenderedTasks, golden: Golden) -> None:
    from pytest_diffaccel.codegen.lookup import record_command

    if batch.borrowed:
        uses = counted(len(batch.borrowed), "task uses", "tasks use")
        _say(f"note: {uses} the record of another target or number of steps, known to hold")
    if batch.unattained:
        targets = counted(len(batch.unattained), "target is", "targets are")
        _say(f"note: {targets} unattainable; the script gives the best reached")
    if batch.unrecorded:
        command, have = record_command(batch.unrecorded.values(), golden), counted(len(batch.unrecorded), "task")
        _say(f"note: without a golden record: {have}; record what is missing with: {command}")


def _report_differences(differences: Sequence[str], scripts: int, folder: Path) -> int:
    for line in differences[:_LISTED_DIFFERENCES]:
        _say(line)
    if len(differences) > _LISTED_DIFFERENCES:
        _say(f"and {len(differences) - _LISTED_DIFFERENCES} more")
    if differences:
        _say(f"{counted(len(differences), 'file')} of {folder} not as golden gives it; run the command without --check")
        return 1
    print_lines(f"{scripts} scripts in {folder} are what golden gives")
    return 0


def _say(line: str) -> None:
    print_lines(line, sys.stderr)
