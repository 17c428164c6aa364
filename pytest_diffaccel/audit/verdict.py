"""What an audit found, as a table and sentences."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.audit.better import InGolden, value_of
from pytest_diffaccel.audit.preset import Preset
from pytest_diffaccel.matrix import Cell, spaced_params
from pytest_diffaccel.measure.deciding import QualityRule
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.measure.statistics import metric_figures
from pytest_diffaccel.records.environment import Environment, differences
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.report.table_text import table_lines
from pytest_diffaccel.report.winners import interval_text, metric_text
from pytest_diffaccel.settings.work_folder import GOLDEN
from pytest_diffaccel.words import counted, lines

_INDENT = " " * 4
# What no row of figures reaches.
_WIDEST = 200
# What golden's rows are called, and why they stand there.
_LESS_LOSS, _FASTER, _IN_MEAN = "golden, less loss", "golden, faster", "golden, in the mean"
_WHY = {
    _LESS_LOSS: "is at least as fast and surely loses less",
    _FASTER: "loses no more and is surely faster",
    _IN_MEAN: "is at least as fast and loses less in the mean, which may be chance (more pictures: --num-samples)",
}
# More differences of environments than this are counted, not listed.
_LISTED = 4


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        preset: what was measured.
        remarks: what of it is measured otherwise or left out, a sentence each.
        environment: where.
        measurement: of the preset.
        quality: what tells losses apart.
        golden: the database that was looked into.
        found: what it says.
        search: the command that records winners of the cell.
    """

    preset: Preset
    remarks: Sequence[str]
    environment: Environment
    measurement: Measurement
    quality: QualityRule
    golden: Golden
    found: InGolden
    search: str

    @property
    def cell(self) -> Cell:
        """Pipe, scheduler and steps."""
        return self.measurement.candidate.cell


def audit_lines(audit: Audit, width: int) -> list[str]:
    """The table of the preset beside the unaccelerated pipeline and what golden has that is better; then sentences.

    Args:
        audit: what was found.
        width: characters per line; 80 are enough for all but long names.
    """
    cell, sampling, blocks = audit.cell, audit.measurement.sampling, audit.measurement.blocks
    title = (
        f"{cell.pipe} {cell.scheduler} {counted(cell.steps, 'step')} ({audit.environment.model_source}), "
        f"{counted(sampling.num_samples, 'picture')} in batches of {sampling.batch_size}, "
        f"{counted(len(blocks), 'block')} of runs"
    )
    said = [line for remark in audit.remarks for line in lines(remark, width)]
    for sentence in _sentences(audit):
        words, _, command = sentence.partition("\n")
        said += [*lines(words, width), *([_INDENT + command] if command else [])]  # what is to be typed stays whole
    return [*lines(title, width), *_table(audit, width), *said]


def _table(audit: Audit, width: int) -> list[str]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "s per picture", "speedup [95%]", "LPIPS [95%]"):
        table.add_column(heading, no_wrap=True, justify="right" if heading.startswith("s ") else "left")
    made, name = audit.measurement, audit.preset.path.name
    size = made.sampling.batch_size
    table.add_row("unaccelerated", f"{median(one.baseline.total_s for one in made.blocks) / size:.3f}", "1", "0")
    own_s = median(run.total_s for one in made.blocks for run in one.runs) / size
    figures = _interval_text(made.speedup, 2, "x"), _interval_text(made.quality.lpips, 3)
    table.add_row(name, f"{own_s:.3f}", *figures)
    below = [[], _own_lines(audit)]
    for name, key, entry in _better(audit.found):
        speedup = interval_text(entry.speedup, entry.speedup_ci95, 2, "x")
        table.add_row(name, "", speedup, interval_text(entry.lpips, entry.lpips_ci95, 3))
        below.append([f"{key.accelerator}: {spaced_params(entry.params)}", *_metrics_of(entry)])
    head, *rows = table_lines(table, _WIDEST)
    wrapped = [
        [_INDENT + line for text in texts for line in lines(text, width - len(_INDENT), indent="")] for texts in below
    ]
    return [head, *(line for row, under in zip(rows, wrapped, strict=True) for line in (row, *under))]


def _own_lines(audit: Audit) -> list[str]:
    """The preset's parameters by method, with where they stand, and its further metrics."""
    said = []
    for method, point in audit.preset.params.items():
        place = audit.preset.places[method]
        at = f" ({place})" if place else ""
        said.append(f"{method}{at}: {spaced_params({method: point})}")
    if audit.measurement.decided:
        said.append(f"reuses {_reused(audit.measurement)} of the {counted(audit.cell.steps, 'step')} in these pictures")
    known = audit.measurement.metrics
    metrics = [metric_text(name, GoldenMetric.of(metric_figures(metric))) for name, metric in known.items()]
    return said + (["; ".join(metrics)] if metrics else [])


def _reused(made: Measurement) -> str:
    """How many steps the pictures of each batch let reuse something, in numbers."""
    params = made.candidate.params
    computed = default_registry().for_params(params).decided_kinds(params, [[False]])
    counts = [sum(kind not in computed for kind in kinds) for kinds in made.decided]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _metrics_of(entry: GoldenEntry) -> list[str]:
    said = "; ".join(metric_text(name, metric) for name, metric in (entry.metrics or {}).items())
    return [said] if said else []


def _better(found: InGolden) -> Iterator[tuple[str, GoldenKey, GoldenEntry]]:
    """Rows of golden, with what they are called, which is in :data:`_WHY`."""
    if found.as_fast is not None:
        yield _LESS_LOSS, *found.as_fast
    if found.as_good is not None and found.as_good != found.as_fast:
        yield _FASTER, *found.as_good
    if found.in_mean is not None:
        yield _IN_MEAN, *found.in_mean


def _sentences(audit: Audit) -> Iterator[str]:
    """What is to be said below the table; a command stands on a line of its own, the second."""
    yield from _of_itself(audit)
    better = list(_better(audit.found))
    if not better:
        yield from _nothing_better(audit)
    for name, key, _ in better:
        asked = f"{key.cell.pipe}, {key.cell.scheduler}, {key.cell.steps} steps, {key.accelerator}, {key.target:g}x"
        yield f"{name}: {_WHY[name]}; its script:\n{_command(asked, audit)}"
    for environment in sorted({entry.environment for _, _, entry in better} - {audit.environment.id}):
        yield _elsewhere(audit, environment)


def _of_itself(audit: Audit) -> Iterator[str]:
    made, quality = audit.measurement, audit.quality
    if made.speedup.high < 1:
        yield "The preset is slower than the unaccelerated pipeline."
    elif made.speedup.low <= 1:
        yield "The preset is not surely faster than the unaccelerated pipeline."
    value = value_of(made, quality)
    if value is not None and quality.cost_of(value.value) > quality.cost_of(quality.worst):
        yield f"The preset loses more than a search lets a winner lose: {quality.too_bad}."
    if not made.estimates_agree:
        wall = _interval_text(made.wall_speedup, 2, "x")
        yield f"By whole runs the speedup is {wall}: something disturbed the runs; audit again on a quiet machine."


def _nothing_better(audit: Audit) -> Iterator[str]:
    found, path, by = audit.found, audit.golden.path, audit.quality.shown
    if found.own is not None:
        key, entry = found.own
        yield (
            f"The preset is golden's own winner for {key.target:g}x: {entry.speedup:.2f}x, LPIPS {entry.lpips:.3f} "
            "where it was recorded."
        )
    if found.winners:
        known = f"its {counted(found.winners, 'winner')} of this cell"
        yield (
            f"golden ({path}) has nothing better: among {known} none is as fast and surely loses less by {by}, and "
            f"none as good and surely faster. Search further, beside golden:\n{audit.search}"
        )
    elif found.elsewhere:
        yield (
            f"golden ({path}) has {counted(found.elsewhere, 'winner')} of this cell, of other weights or pictures, "
            f"whose losses say nothing of these. Search with yours, beside golden:\n{audit.search}"
        )
    else:
        yield f"golden ({path}) has no winner of this cell: what would be better is not known. Search:\n{audit.search}"


def _command(asked: str, audit: Audit) -> str:
    path = audit.golden.path
    return shlex.join(["diffaccel", "generate", asked, *(["--golden", str(path)] if path != GOLDEN else [])])


def _elsewhere(audit: Audit, environment: str) -> str:
    """Where golden's figures are of, if that is not where the preset was measured."""
    changed = differences(audit.golden.environments[environment], audit.environment)
    more = f" and {len(changed) - _LISTED} more" if len(changed) > _LISTED else ""
    return (
        f"Golden's figures were recorded elsewhere ({'; '.join(changed[:_LISTED])}{more}): audit its winner's script, "
        "too, for figures of here."
    )


def _interval_text(interval: Interval, decimals: int, unit: str = "") -> str:
    return interval_text(interval.value, (interval.low, interval.high), decimals, unit)
