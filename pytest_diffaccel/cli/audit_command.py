"""The command ``diffaccel audit``: somebody's preset, measured here, beside what golden has that is better."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.report.terminal import print_lines, width
from pytest_diffaccel.settings.option_types import count
from pytest_diffaccel.settings.options import SEARCH_OPTIONS, as_given, benches_command, options_of
from pytest_diffaccel.settings.work_folder import GOLDEN
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.audit.preset import Preset
    from pytest_diffaccel.matrix import Cell
    from pytest_diffaccel.measure.measurement import Measurement
    from pytest_diffaccel.search.search_run import SearchRun
    from pytest_diffaccel.settings.search_settings import Settings

# Of a search's options, those that say with what and how one candidate is measured, and what it is compared with.
_OPTIONS = (
    *("--models", "--clip-model", "--gpus", "--num-samples", "--batch-size", "--prompts", "--seed", "--quality"),
    *("--max-quality-loss", "--metrics", "--case-timeout", "--store", "--golden"),
)
# Those of them that a search must be given, too, to find what can be compared.
_OF_SEARCH = ("--models", "--clip-model", "--gpus", "--num-samples", "--batch-size", "--prompts", "--seed", "--quality")
# Timed blocks: three tell something of a speed-up, as in cases of one's own.
_BLOCKS = 3


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    audit = commands.add_parser(
        "audit", help="measure somebody's preset: what it gives, what it costs, what would be better"
    )
    audit.add_argument(
        "preset",
        type=Path,
        metavar="FILE",
        help="Python with the calls that set a method (TaylorSeerCacheConfig(...), helper.set_params(...), ...), "
        "which is read and never run; or YAML or JSON",
    )
    audit.add_argument("--pipe", required=True, metavar="NAME", help="SD1.5, SD2.1, SDXL, FLUX.1, or your own")
    audit.add_argument("--sched", metavar="NAME", help="default: the first of the pipe's")
    audit.add_argument("--steps", metavar="N", help="default: the preset's, or the first of the pipe's")
    audit.add_argument(
        "--blocks", type=count, default=_BLOCKS, metavar="N", help=f"timed blocks at the least (default: {_BLOCKS})"
    )
    for declared in SEARCH_OPTIONS:
        if declared.names[0] in _OPTIONS:
            audit.add_argument(*declared.names, dest=declared.dest, **declared.keywords)
    audit.set_defaults(run=_audit)


def _audit(parsed: argparse.Namespace) -> int:
    from pytest_diffaccel.audit.better import in_golden
    from pytest_diffaccel.audit.preset import check_preset, read_preset
    from pytest_diffaccel.audit.verdict import Audit, audit_lines
    from pytest_diffaccel.pipes import known
    from pytest_diffaccel.records.golden_file import Golden

    registry = _registry(parsed)
    pipe = next((pipe for pipe in known() if pipe.is_spelled(parsed.pipe)), None)
    preset = read_preset(parsed.preset, registry, pipe)
    run, cell = _opened(parsed, preset, registry)
    golden = Golden.read(run.settings.golden)  # before anything is measured: it may be broken
    remarks = [*preset.remarks, *check_preset(preset, cell, registry)]
    try:
        _say(run.settings, cell, preset)
        with _importing_nothing_from(preset.path.parent):
            measurement = _measured(run, cell, preset, parsed.blocks)
        environment, quality = run.bench.environment(cell), run.settings.quality.rule
    finally:
        run.close()
    found = in_golden(golden, cell, environment, measurement, quality)
    search = _search_command(parsed, cell, beside=bool(found.winners or found.elsewhere))
    made = Audit(preset, remarks, environment, measurement, quality, golden, found, search)
    print("\n".join(audit_lines(made, width())))
    return 0


def _registry(parsed: argparse.Namespace) -> Registry:
    """The methods known; conftest files are loaded where the pipe is none that is built in or in the models file."""
    from pytest_diffaccel.accelerators.registry import default_registry
    from pytest_diffaccel.models.registry import UnknownPipe, know_pipes
    from pytest_diffaccel.pipes import PipeRegistry, known

    try:
        know_pipes(PipeRegistry(), parsed.models)
        if any(pipe.is_spelled(parsed.pipe) for pipe in known()):
            return default_registry()
    except UnknownPipe:
        pass
    from pytest_diffaccel.plugin.registered import registered_here

    registry, pipes = registered_here()
    know_pipes(pipes, parsed.models)
    return registry


def _opened(parsed: argparse.Namespace, preset: Preset, registry: Registry) -> tuple[SearchRun, Cell]:
    """A search of one cell, of which only the workbench is used."""
    from pytest_diffaccel.measure.metrics.registry import MetricRegistry
    from pytest_diffaccel.plugin.registered import clip_of
    from pytest_diffaccel.search.search_run import SearchRun
    from pytest_diffaccel.settings.option_types import OptionError
    from pytest_diffaccel.settings.search_settings import Settings

    options = argparse.Namespace(**{declared.dest: declared.default for declared in SEARCH_OPTIONS})
    vars(options).update({name: value for name, value in vars(parsed).items() if name in vars(options)})
    options.pipe, options.sched = [parsed.pipe], [parsed.sched] if parsed.sched else None
    steps = parsed.steps or (preset.steps and str(preset.steps))
    options.steps = [steps] if steps else None
    metrics = MetricRegistry(clip_of(options))
    settings = Settings.from_options(options, registry.names, metrics)
    for option, given, name in (("--sched", parsed.sched, "scheduler"), ("--steps", parsed.steps, "steps")):
        if given and len({getattr(cell, name) for cell in settings.cells}) > 1:
            raise OptionError(f"{option}: {given!r} names several; audit one at a time")
    if len({cell.pipe for cell in settings.cells}) > 1:
        raise OptionError(f"--pipe: {parsed.pipe!r} names several; audit one at a time")
    cell = settings.cells[0]
    return SearchRun(_on_gpu(replace(settings, cells=(cell,))), registry, metrics=metrics), cell


def _on_gpu(settings: Settings) -> Settings:
    """The settings with the first GPU that was asked for, which this process then sees alone."""
    if settings.gpus is None:
        return settings
    from pytest_diffaccel import devices

    chosen = devices.choose_gpus(settings.gpus)[0]
    devices.use_gpu(chosen)
    return replace(settings, gpu=chosen)


@contextmanager
def _importing_nothing_from(folder: Path) -> Iterator[None]:
    """Find no modules in a preset's folder: under ``python -m`` a preset called ``tgate.py`` would be run as T-GATE."""
    path = list(sys.path)
    sys.path[:] = [place for place in path if Path(place).resolve() != folder.resolve()]
    try:
        yield
    finally:
        sys.path[:] = path


def _say(settings: Settings, cell: Cell, preset: Preset) -> None:
    """Say what is going to be measured: it takes minutes."""
    pictures = counted(settings.num_samples, "picture")
    print_lines(
        f"measuring {preset.path} beside the unaccelerated pipeline: {cell.pipe} {cell.scheduler} {cell.steps} steps, "
        f"{pictures} of each",
        sys.stderr,
    )


def _measured(run: SearchRun, cell: Cell, preset: Preset, blocks: int) -> Measurement:
    """The preset's measurement; what is no error of the preset's file is told in words, too.

    Raises:
        ValueError: saying what went wrong.
    """
    from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct, StepCountError
    from pytest_diffaccel.measure.degenerate import DegeneratePictures
    from pytest_diffaccel.measure.time_limit import CaseTimeout
    from pytest_diffaccel.records.tables import StoreError
    from pytest_diffaccel.search.evaluate.own_case import measure_on_held_out
    from pytest_diffaccel.search.pipelines import Unavailable

    told = (Unavailable, DegeneratePictures, MethodDidNotAct, StepCountError, CaseTimeout, StoreError)
    try:
        return measure_on_held_out(run.bench, cell, preset.params, blocks)
    except told as error:
        raise ValueError(f"{preset.path}: {error}") from error


def _search_command(parsed: argparse.Namespace, cell: Cell, *, beside: bool) -> str:
    """The search that records winners of a cell which the preset can be compared with.

    Args:
        parsed: the command line, whose options decide pictures and figures.
        cell: the preset's.
        beside: whether golden has the cell's keys already, which a search leaves as they are.
    """
    golden = Path(parsed.golden)
    if beside:
        golden = golden.with_name(f"{golden.stem}-{cell.pipe}{golden.suffix}")
    where = ("--golden", str(golden)) if golden != GOLDEN else ()
    return benches_command(*options_of(cell), *as_given(parsed, _OF_SEARCH), *where)
