"""The command ``diffaccel report``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, Cell
from pytest_diffaccel.pipes import described
from pytest_diffaccel.report.terminal import print_lines
from pytest_diffaccel.settings.option_types import positive
from pytest_diffaccel.settings.work_folder import GOLDEN, WORK, WorkFolder, golden_of

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.records.contents import Contents, GroupDecision, GroupWinners
    from pytest_diffaccel.report.html.content.material import Material


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    report = commands.add_parser("report", help="write what a search found, or has found so far, as one HTML file")
    add_places(report)
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE")
    report.add_argument("--pipe", action="append", metavar="NAME", help="only these pipes; repeatable")
    report.add_argument("--sched", action="append", metavar="NAME", help="only these schedulers; repeatable")
    report.add_argument("--steps", action="append", metavar="N", help="only these numbers of steps; repeatable")
    report.set_defaults(run=_report)


def add_places(command: argparse.ArgumentParser) -> None:
    """Declare where a search left what it found, and what it was told."""
    command.add_argument(
        "--store", metavar="URL", help=f"measurements: SQLite file or SQLAlchemy URL (default: {WORK.store})"
    )
    command.add_argument("--golden", type=Path, metavar="FILE", help=f"default: {GOLDEN}, or that of a compiled stack")
    command.add_argument("--prompts", type=Path, metavar="FILE", help="the prompts that the search was given")
    command.add_argument(
        "--max-quality-loss",
        type=positive,
        default=0.25,
        metavar="LPIPS",
        help="what a search that LPIPS decided was told (default: 0.25)",
    )


def _report(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.report.html.page import path_and_size, write_report

    say = _say if sys.stderr.isatty() else lambda _: None
    material = material_of(parsed)
    with _between_timings(WorkFolder(material.images.folder.parent).timing_lock, say):
        write_report(parsed.output, material, say)
    say("")
    print_lines(path_and_size(parsed.output))
    return 0


@contextmanager
def _between_timings(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep out of the blocks that a running search is timing on this machine."""
    from pytest_diffaccel.measure.timing_lock import TimingLock

    if not (lock.is_file() and os.access(lock, os.W_OK)):
        yield
        return
    say("waiting for a block that a search is timing")
    with TimingLock(lock, shareable=True).generating():
        yield


def material_of(parsed: argparse.Namespace) -> Material:
    """All that a search left.

    Raises:
        FileNotFoundError: when there is no store.
        ValueError: when it cannot be read.
    """
    from pytest_diffaccel.accelerators.registry import default_registry
    from pytest_diffaccel.measure.deciding import LPIPS, QualityRule
    from pytest_diffaccel.records.golden_file import Golden
    from pytest_diffaccel.records.images import ImageStore
    from pytest_diffaccel.records.store import Store
    from pytest_diffaccel.records.tables import StoreError
    from pytest_diffaccel.report.html.content.material import Material
    from pytest_diffaccel.report.html.content.prompt_texts import Prompts

    registry = default_registry()
    store, work = _places(parsed.store)
    try:
        with Store.open(store) as opened:
            contents = opened.contents()
    except StoreError as error:
        raise ValueError(str(error)) from error
    golden = parsed.golden or (golden_of("compiled") if _on_stack(contents) else GOLDEN)
    return Material(
        contents=contents,
        registry=registry,
        quality=QualityRule(LPIPS, parsed.max_quality_loss, higher_is_better=False),
        golden=Golden.read(golden),
        images=ImageStore(work.images),
        logs=work.logs,
        prompts=Prompts(parsed.prompts),
        command=_command(parsed, contents, registry, golden),
        wanted=_wanted(parsed, contents),
    )


def _places(given: str | None) -> tuple[str, WorkFolder]:
    """The store, and the working folder in which its search left pictures and logs: beside an SQLite file.

    Raises:
        FileNotFoundError: when an SQLite file is not there.
    """
    from pytest_diffaccel.records.places import refuse_missing, store_file

    store = given or str(WORK.store)
    refuse_missing(store)
    file = store_file(store)
    beside = WORK if file is None else WorkFolder(file.parent)
    return store, beside if beside.images.is_dir() else WORK


def _wanted(parsed: argparse.Namespace, contents: Contents) -> Callable[[Cell], bool]:
    from pytest_diffaccel.settings.search_settings import chosen_cells

    if not (parsed.pipe or parsed.sched or parsed.steps):
        return lambda _: True
    measured = [
        record.measurement.candidate.cell
        for record in contents.measurements
        if record.measurement.candidate.accelerator
    ]
    # What is not named is all that was searched of any pipe.
    schedulers = tuple(dict.fromkeys([*SCHEDULERS, *sorted(cell.scheduler for cell in measured)]))
    steps = tuple(sorted({*STEPS, *(cell.steps for cell in measured)}))
    names = dict.fromkeys([*PIPES, *sorted(cell.pipe for cell in measured)])
    pipes = [replace(described(name), schedulers=schedulers, steps=steps) for name in names]
    chosen = set(chosen_cells(parsed, pipes))
    return lambda cell: cell in chosen


def _command(parsed: argparse.Namespace, contents: Contents, registry: Registry, golden: Path) -> str:
    """What searches again: the cells that were chosen, else those in the store, with the accelerators that it knows.

    Args:
        parsed: the command line.
        contents: the store's.
        registry: the accelerators known; a search without ``--search-targets`` tries those that suit its pipes.
        golden: the golden file that it is compared with.
    """
    from pytest_diffaccel.settings.options import benches_command

    wanted = _wanted(parsed, contents)
    measured = (record.measurement.candidate for record in contents.measurements)
    # Without an accelerator are rivals, in cells of fewer steps.
    found = [candidate for candidate in measured if candidate.accelerator and wanted(candidate.cell)]
    pipes = {candidate.cell.pipe for candidate in found}
    accelerators = {accelerator.name for pipe in pipes for accelerator in registry.suiting(pipe)}
    options = (
        ("pipe", parsed.pipe, pipes, PIPES),
        ("sched", parsed.sched, {candidate.cell.scheduler for candidate in found}, SCHEDULERS),
        ("steps", parsed.steps, {str(candidate.cell.steps) for candidate in found}, map(str, STEPS)),
        ("search-targets", None, {candidate.accelerator for candidate in found}, accelerators),
    )
    words: list[str] = []
    for name, given, known, default in options:
        values = given or ([] if known == set(default) else sorted(known))
        words += [word for value in values for word in (f"--{name}", value)]
    words += _grid_options([group for group in contents.groups if wanted(group.cell)])
    words += ["--stack", "compiled"] if _on_stack(contents) else []
    words += _deciding_options([won for won in contents.winners if wanted(won.cell)])
    words += ["--store", parsed.store] if parsed.store else []
    words += ["--golden", str(golden)] if golden != GOLDEN else []
    return benches_command(*words)


def _grid_options(groups: Sequence[GroupDecision]) -> list[str]:
    """Which points were searched, where all groups were searched alike."""
    from pytest_diffaccel.settings.search_settings import OF_EVERY_POINT, ON_COARSE_GRID

    options = {ON_COARSE_GRID: ("--grid", "coarse"), OF_EVERY_POINT: ("--exhaustive",)}
    shared = [own for terms, own in options.items() if groups and all(terms in one.sampling.purpose for one in groups)]
    return [word for own in shared for word in own]


def _on_stack(contents: Contents) -> bool:
    """Whether all that was measured is of a compiled stack."""
    names = {record.measurement.environment for record in contents.measurements}
    return bool(names) and all(known.stack for known in map(contents.environments.get, names) if known)


def _deciding_options(winners: Sequence[GroupWinners]) -> list[str]:
    """What decided in another way than usual, where all groups were decided alike: without it, others would win."""
    from pytest_diffaccel.measure.deciding import LPIPS
    from pytest_diffaccel.settings.metric_options import deciding_options

    rules = {won.quality for won in winners}
    worst = [rule.worst for rule in rules if rule is not None and len(rules) == 1]
    options = deciding_options(
        {LPIPS if rule is None else rule.metric for rule in rules},
        {entry.rule for won in winners for entry in won.entries.values()},
    )
    return [*options, *(part for value in worst for part in ("--max-quality-loss", str(value)))]


def _say(doing: str) -> None:
    print(f"\r\x1b[K{doing}", end="\r", file=sys.stderr, flush=True)
