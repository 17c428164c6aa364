"""The winners as a table, and the lines around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import wrap

from pytest_diffaccel.matrix import Params, format_params
from pytest_diffaccel.records.environment import Environment, QualityScale
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.table_text import table_lines
from pytest_diffaccel.search.news import Calibration
from pytest_diffaccel.search.results import Chosen, Winners
from pytest_diffaccel.settings.search_settings import Settings

# Of LPIPS in four digits.
_LEAST_SHOWN = 0.00005
# What no row of figures reaches.
_WIDEST = 200
#: Of the columns of figures; what they are of stands before them, the parameters after them.
HEADINGS = ("speedup [95%]", "LPIPS [95%]", "fewer steps")
# More differences than this are counted, not listed.
_LISTED_CHANGES = 20
# By how much the GPU's own speed-up has to be the higher one to be spoken of.
_WORTH_A_WORD = 1.05
# Of what is said of a change that is too long for a line.
_INDENT = " " * 4


def winners_table(
    entries: Mapping[GoldenKey, GoldenEntry], environments: Mapping[str, Environment], width: int
) -> list[str]:
    """One table per cell, as lines: a winner with the targets that it is the winner for, its parameters below it.

    Args:
        entries: winners and unattainable targets.
        environments: by id, what the entries' environments are; every table names its model source, and puts losses on
            the scale of what pictures lose that have nothing but a prompt in common.
        width: characters per line; 80 are enough for all but long names.
    """
    ordered = sorted(entries, key=lambda key: key.prompt_order)
    lines: list[str] = []
    for cell, keys in groupby(ordered, key=lambda key: key.cell):
        rows = [(key, entries[key]) for key in keys]
        environment = environments.get(rows[-1][1].environment)
        source = environment.model_source if environment else "unknown source"
        scale = environment.scale if environment else None
        title = f"{cell.pipe} {cell.scheduler} {cell.steps} steps ({source})"
        lines += ["", *wrap(title, width, subsequent_indent=_INDENT), *_table(rows, scale, width)]
        for note in legend([entry for _, entry in rows], scale):
            lines += wrap(note, width, subsequent_indent=_INDENT)
    return lines


def legend(entries: Sequence[GoldenEntry], scale: QualityScale | None) -> list[str]:
    """What the columns mean, in a few sentences."""
    notes = []
    if scale:
        other = f", {scale.unrelated:.3f} another seed's (%: of that)" if scale.unrelated else ""
        rounding = f"; rounding alone makes {scale.noise_floor:.4f}" if scale.noise_floor >= _LEAST_SHOWN else ""
        notes.append(f"LPIPS: 0 is the same picture{other}{rounding}.")
    if any(entry.fewer_steps for entry in entries):
        notes.append("Fewer steps: LPIPS of the plain pipeline at as many steps as are as fast; !: it loses less.")
    if any(entry.device_speedup is not None for entry in entries):
        notes.append("GPU: speedup by its own time (*: it decided); where that is higher, the GPU waits for the host.")
    return notes


def _table(rows: Sequence[tuple[GoldenKey, GoldenEntry]], scale: QualityScale | None, width: int) -> list[str]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("targets", *HEADINGS):
        table.add_column(heading, no_wrap=True)
    around: list[tuple[list[str], list[str]]] = []
    for accelerator, of_accelerator in groupby(rows, key=lambda row: row[0].accelerator):
        above = [accelerator]
        for _, same in groupby(of_accelerator, key=lambda row: (row[1].reason, row[1].params)):
            winner = list(same)
            entry, targets = winner[0][1], _targets([key.target for key, _ in winner])
            table.add_row(f"  {targets}", *(figures(entry, scale) if entry.status == "met" else ()))
            below = wrap(said_of(entry), width - len(_INDENT), break_on_hyphens=False, break_long_words=False)
            around.append((above, list(map(_indented, below))))
            above = []
    # Whatever the width: a figure that is cut off is none.
    head, *lines = table_lines(table, _WIDEST)
    return [head, *(line for row, (above, below) in zip(lines, around, strict=True) for line in (*above, row, *below))]


def _indented(line: str) -> str:
    return f"{_INDENT}{line}"


def _targets(targets: Sequence[float]) -> str:
    """``1.5x`` or ``1.5x to 2x``."""
    return f"{targets[0]:g}x" if len(targets) == 1 else f"{targets[0]:g}x to {targets[-1]:g}x"


def figures(entry: GoldenEntry, scale: QualityScale | None) -> tuple[str, str, str]:
    """The texts under :data:`HEADINGS`."""
    speedup = interval_text(entry.speedup, entry.speedup_ci95, 2, "x")
    if entry.device_speedup is not None:
        speedup += f" GPU {entry.device_speedup:.2f}x" + ("*" if entry.decided_by == "device" else "")
    lpips = interval_text(entry.lpips, entry.lpips_ci95, 3)
    if scale and scale.unrelated and entry.lpips is not None:
        lpips += f" {entry.lpips / scale.unrelated:.0%}"
    return speedup, lpips, _fewer_steps(entry)


def said_of(entry: GoldenEntry) -> str:
    """A winner's parameters; of a target out of reach, why, and what comes nearest, in a sentence."""
    params = spaced_params(entry.params)
    if entry.status == "met":
        return params
    if entry.speedup is None or entry.lpips is None:
        return "unattainable: nothing could be measured"
    best = f"{entry.speedup:.2f}x at LPIPS {entry.lpips:.3f}, by {params}"
    return f"{why_unattainable(entry)}; best reached: {best}"


def why_unattainable(entry: GoldenEntry) -> str:
    """Of a target out of reach, that it is, and why."""
    why = {"speed": "no candidate is surely fast enough", "quality": "the fast ones lose too much quality"}
    return f"unattainable: {why[entry.reason or 'speed']}"


def spaced_params(params: Params) -> str:
    """Parameters in a line that breaks between them."""
    return format_params(params).replace(",", ", ")


def _fewer_steps(entry: GoldenEntry) -> str:
    """LPIPS of the plain pipeline at the step count that is as fast, and whether it makes the winner pointless."""
    if entry.fewer_steps is None:
        return "-"
    return f"{entry.fewer_steps.lpips:.3f} ({entry.fewer_steps.steps})" + ("" if entry.beats_fewer_steps else "!")


def interval_text(value: float | None, ends: tuple[float, float] | None, decimals: int, unit: str = "") -> str:
    """A figure with its interval; a dash for none."""
    if value is None or ends is None:
        return "-"
    return f"{value:.{decimals}f}{unit} [{ends[0]:.{decimals}f}, {ends[1]:.{decimals}f}]"


def changes_text(changes: Sequence[Change], golden: Path, width: int) -> list[str]:
    """What became of the golden file: counts, and every difference, in lines of ``width`` characters at most."""
    counts = Counter(change.kind for change in changes)
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing to record"
    lines = ["", f"golden: {golden}: {said}"]
    listed = [change for change in changes if change.kind in ("differs", "updated", "pruned")]
    lines += [line for change in listed[:_LISTED_CHANGES] for line in _change_lines(change, width)]
    if len(listed) > _LISTED_CHANGES:
        lines.append(f"  and {len(listed) - _LISTED_CHANGES} more")
    return lines


def _change_lines(change: Change, width: int) -> list[str]:
    """One line where that is enough; else the key, then each difference, what is too long before and after an arrow."""
    line = f"  {change.describe()}"
    if len(line) <= width:
        return [line]
    parts = [f"  {change.kind}: {change.key}"]
    for detail in change.details:
        before, arrow, after = detail.partition(" -> ")
        fits = len(detail) + len(_INDENT) <= width or not arrow
        parts += [_INDENT + detail] if fits else [_INDENT + before, f"{_INDENT}  -> {after}"]
    return [line for part in parts for line in wrap(part, width, subsequent_indent=2 * _INDENT, break_on_hyphens=False)]


def calibration_text(pipe: str, calibration: Calibration, left: str | None) -> str:
    """What a pipe's calibration says, and how long the search still takes, in a line."""
    took = f"in {calibration.seconds:.0f} s" if calibration.rounds else "before"
    half_width = calibration.half_width_ratio
    # A kind of step that no short run held yet leaves a speed-up open by any factor.
    known = (
        f"speed-ups are predicted to {half_width:.1%} or better" if half_width < 1 else "some speed-ups are open yet"
    )
    return f"{pipe}: calibrated {took}; {known}" + (f"; about {left} left" if left else "")


def slowdown_text(pace: float, left: str | None) -> str:
    """That the search takes ``pace`` times as long as the calibration says, in a line."""
    said = f"the machine is slower than when it was calibrated: work takes {pace:.1f} times as long"
    return said + (f"; about {left} left" if left else "")


def provisional_text(result: Winners) -> str:
    """A group's winners before they are verified, in a line: the targets of each with its speed-up and loss."""
    said = []
    for params, same in groupby(result.provisional, key=lambda chosen: chosen.params):
        winner = list(same)
        targets = ", ".join(f"{chosen.key.target:g}x" for chosen in winner)
        said.append(
            f"{targets} by {format_params(params)} ({winner[0].speedup.value:.2f}x, LPIPS {winner[0].lpips:.3f})"
        )
    return f"{result.cell} {result.accelerator}, to be verified: {'; '.join(said)}"


def undecided_text(undecided: Mapping[GoldenKey, Chosen]) -> list[str]:
    """Targets of which it is not known well enough whether a candidate reaches them, and what came nearest."""
    if not undecided:
        return []
    lines = [
        "",
        f"undecided: {len(undecided)} targets; their golden records stay as they are, the same command goes on",
    ]
    for key, choice in sorted(undecided.items(), key=lambda pair: pair[0].prompt_order):
        speedup = choice.speedup
        lines.append(
            f"  {key.cell.pipe} {key.cell.scheduler} {key.cell.steps} {key.accelerator} {key.target:g}x: "
            f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}], LPIPS {choice.lpips:.3f}, "
            f"{format_params(choice.params)}"
        )
    return lines


def left_out(left: Mapping[str, int]) -> list[str]:
    """What a search whose time was up did not try.

    Args:
        left: candidates that were still promising, by group.
    """
    heading = f"search budget: {sum(left.values())} promising candidates were not tried; the same command goes on"
    return _by_group(
        heading, {group: f"{count} left, targets without a winner are undecided" for group, count in left.items()}
    )


def unfit_text(unfit: Mapping[str, str]) -> list[str]:
    """Groups of which the model can take no candidate: they have no records, and nothing went wrong.

    Args:
        unfit: why not, by group.
    """
    return _by_group(f"left out: {len(unfit)} group(s) that do not fit the model", unfit)


def unrecorded_text(unrecorded: Mapping[str, str]) -> list[str]:
    """Groups whose winners were asked for and have no record: the run must not look as if all were done.

    Args:
        unrecorded: why not, by group.
    """
    counted = f"not recorded: the winners of {len(unrecorded)} group(s); measure what is missing and run their cases"
    return _by_group(f"{counted} again", unrecorded)


def _by_group(heading: str, said: Mapping[str, str]) -> list[str]:
    """A heading and a line per group; nothing without groups."""
    return ["", heading, *(f"  {group}: {text}" for group, text in said.items())] if said else []


def next_steps(
    settings: Settings,
    changes: Sequence[Change],
    *,
    failed: int,
    launch_bound: Mapping[str, int],
    entries: Mapping[GoldenKey, GoldenEntry],
) -> list[str]:
    """What the user can do now, and should know.

    Args:
        settings: the search's settings.
        changes: to the golden database.
        failed: number of failed cases.
        launch_bound: number of winners whose steps wait for what launches them, by accelerator.
        entries: winners and unattainable targets.
    """
    lines = []
    if any(change.kind == "differs" for change in changes):
        lines.append("next: golden records differ and were kept; write the new ones with --update-golden")
    if failed:
        lines.append(f"next: {failed} case(s) failed; run them again with --lf")
    if settings.coarse:
        lines.append("next: leave out --grid coarse for all grid points; what is measured is not measured again")
    if settings.models == "embedded":
        lines.append(
            "note: embedded pipelines are small stand-ins; search your own weights with --models hub or a TOML file"
        )
    # A CPU computes and launches by itself: nothing waits for anything there.
    if launch_bound and settings.gpus is not None:
        counted = ", ".join(f"{name} ({count})" for name, count in launch_bound.items())
        lines.append(
            f"note: launch-bound winners: {counted}; in their steps the GPU waits for a CPU core, so their speed-ups "
            "change with that core's speed and with what else uses it; larger batches (--batch-size) leave less of that"
        )
    if settings.gpus is not None:
        lines += _without_waiting(entries)
    return lines


def _without_waiting(entries: Mapping[GoldenKey, GoldenEntry]) -> list[str]:
    """What the winner that waits most for its host would gain without that, in a sentence; none where it is little."""
    by_gain = {
        entry.device_speedup / entry.speedup: (key, entry)
        for key, entry in entries.items()
        if entry.status == "met" and entry.speedup and entry.device_speedup is not None
    }
    gain = max(by_gain, default=0.0)
    if gain < _WORTH_A_WORD:
        return []
    key, entry = by_gain[gain]
    return [
        f"note: a pipeline that waits for no launches (torch.compile, CUDA graphs) gains up to the GPU's own speed-up: "
        f"{entry.device_speedup:.2f}x instead of {entry.speedup:.2f}x by {key.accelerator} for {key.target:g}x"
    ]
