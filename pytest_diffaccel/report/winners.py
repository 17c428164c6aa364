"""The winners as a table, and the lines around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from pytest_diffaccel.accelerators.stack import stack_words
from pytest_diffaccel.matrix import spaced_params
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.records.environment import Environment, differences_text
from pytest_diffaccel.records.found_out import QualityScale
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.report.table_text import table_lines
from pytest_diffaccel.rules import DIFFBENCH
from pytest_diffaccel.search.news import Calibration
from pytest_diffaccel.search.results import Winners
from pytest_diffaccel.words import counted
from pytest_diffaccel.words import lines as wrapped

# Of LPIPS in four digits.
_LEAST_SHOWN = 0.00005
# What no row of figures reaches.
_WIDEST = 200
#: Of the columns of figures; what they are of stands before them, the parameters after them.
HEADINGS = ("speedup [95%]", "LPIPS [95%]", "fewer steps")
# Marks rows of another environment than most of a cell's.
_ELSEWHERE = "°"
# Of what is said below a row.
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
        counts = Counter(entry.environment for _, entry in rows)
        here = max(counts, key=lambda name: counts[name])
        environment = environments.get(here)
        source = environment.model_source if environment else "unknown source"
        scale = environment.scale if environment else None
        title = f"{cell.in_words} ({source})"
        lines += ["", *wrapped(title, width), *_table(rows, environments, scale, width, here)]
        stacks = [note for one in counts for note in stack_notes(environments.get(one))]
        elsewhere = [
            f"{_ELSEWHERE}: recorded in another environment than the rest: "
            f"{differences_text(environment, environments.get(one))}."
            for one in counts
            if one != here
        ]
        notes = (*legend([entry for _, entry in rows], scale), *dict.fromkeys(stacks), *dict.fromkeys(elsewhere))
        for note in notes:
            lines += wrapped(note, width)
    return lines


def stack_notes(environment: Environment | None) -> list[str]:
    """What speed-ups are over, where that is not the eager pipeline, and what torch compiled, in a few sentences."""
    if environment is None or not environment.stack:
        return []
    notes = [f"Speedups are over the compiled stack ({stack_words(environment.stack)})."]
    if (gain := environment.over_eager) is not None:
        gpu = f" (GPU {gain.device.value:.2f}x)" if gain.device else ""
        ends = interval_text(gain.wall.value, (gain.wall.low, gain.wall.high), 2, "x")
        notes[0] += f" Unaccelerated, that is {ends}{gpu} as fast as eager ({gain.scheduler}, {gain.steps} steps)."
    compiled = [
        f"{name or 'unaccelerated'} {counted(made.graphs, 'graph') if made.graphs else 'no graph'}, "
        f"{counted(made.graph_breaks, 'graph break') if made.graph_breaks else 'no break'}, {made.seconds:.0f} s"
        for name, made in environment.set_up.items()
    ]
    return notes + ([f"Compiled beforehand, in no speedup: {'; '.join(compiled)}."] if compiled else [])


def over_eager_text(entry: GoldenEntry, environment: Environment | None) -> str:
    """``1.96x [1.89, 2.04] over eager``; empty where :func:`over_eager` is."""
    found = over_eager(entry, environment)
    return f"{found} over eager" if found else ""


def over_eager(entry: GoldenEntry, environment: Environment | None) -> str:
    """``1.96x [1.89, 2.04]``; empty where the stack is the eager one, or nothing was measured."""
    gain = environment.over_eager if environment else None
    if gain is None or entry.speedup is None or entry.speedup_ci95 is None:
        return ""
    found = gain.speedup(Interval(entry.speedup, *entry.speedup_ci95))
    return interval_text(found.value, (found.low, found.high), 2, "x")


def legend(entries: Sequence[GoldenEntry], scale: QualityScale | None) -> list[str]:
    """What the columns mean, in a few sentences."""
    notes = []
    if scale:
        other = f", {scale.unrelated:.3f} another seed's (%: of that)" if scale.unrelated else ""
        rounding = f"; rounding alone makes {scale.noise_floor:.4f}" if scale.noise_floor >= _LEAST_SHOWN else ""
        notes.append(f"LPIPS: 0 is the same picture{other}{rounding}.")
    if any(entry.fewer_steps for entry in entries):
        notes.append("Fewer steps: LPIPS of the plain pipeline at as many steps as are as fast; !: it loses less.")
    if any(entry.quality != LPIPS for entry in entries):
        notes.append("Where another metric than LPIPS decided, !: by that.")
    if any(entry.rule == DIFFBENCH for entry in entries):
        notes.append("By DiffBench's rule: means decide, not intervals; CLIP score at most 5% lower.")
    if any(metric.change is not None for entry in entries for metric in (entry.metrics or {}).values()):
        notes.append("Other metrics, %: change from the unaccelerated pictures', paired by prompt.")
    if any(entry.basis == "predicted" for entry in entries if entry.status == "met"):
        notes.append("~: predicted from what its kinds of steps cost, not measured.")
    if others := sorted({entry.quality_from for entry in entries if entry.quality_from}):
        notes.append(f"LPIPS: not of this model's pictures, but of {'; of '.join(others)}.")
    if any(entry.device_speedup is not None for entry in entries):
        notes.append("GPU: speedup by its own time (*: it decided); where that is higher, the GPU waits for the host.")
    return notes


def _table(
    rows: Sequence[tuple[GoldenKey, GoldenEntry]],
    environments: Mapping[str, Environment],
    scale: QualityScale | None,
    width: int,
    here: str,
) -> list[str]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("targets", *HEADINGS):
        table.add_column(heading, no_wrap=True)
    around: list[tuple[list[str], list[str]]] = []
    for accelerator, of_accelerator in groupby(rows, key=lambda row: row[0].accelerator):
        above = [accelerator]
        for _, same in groupby(of_accelerator, key=lambda row: (row[1].reason, row[1].params, row[1].environment)):
            winner = list(same)
            entry, targets = winner[0][1], _targets([key.target for key, _ in winner])
            mark = "" if entry.environment == here else f" {_ELSEWHERE}"
            table.add_row(f"  {targets}{mark}", *(figures(entry, scale) if entry.status == "met" else ()))
            below = [
                line
                for said in (
                    said_of(entry),
                    over_eager_text(entry, environments.get(entry.environment)),
                    metrics_text(entry),
                )
                if said
                for line in wrapped(said, width - len(_INDENT), indent="")
            ]
            around.append((above, list(map(_indented, below))))
            above = []
    # Whatever the width: a figure that is cut off is none.
    head, *lines = table_lines(table, _WIDEST)
    return [head, *(line for row, (above, below) in zip(lines, around, strict=True) for line in (*above, row, *below))]


def _indented(line: str) -> str:
    return f"{_INDENT}{line}"


def _targets(targets: Sequence[float]) -> str:
    """``1.5x`` or ``1.5-2x``: as short as 80 columns ask where a GPU's own speedup stands beside the clock's."""
    return f"{targets[0]:g}x" if len(targets) == 1 else f"{targets[0]:g}-{targets[-1]:g}x"


def figures(entry: GoldenEntry, scale: QualityScale | None) -> tuple[str, str, str]:
    """The texts under :data:`HEADINGS`."""
    speedup = "~" * (entry.basis == "predicted") + interval_text(entry.speedup, entry.speedup_ci95, 2, "x")
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
    best = f"{entry.speedup:.2f}x at {quality_text(entry)}, by {params}"
    return f"{why_unattainable(entry)}; best reached: {best}"


def quality_text(entry: GoldenEntry) -> str:
    """What decided, with its mean: ``LPIPS 0.031`` or ``psnr 20.16``, of an entry with figures."""
    return f"LPIPS {entry.lpips:.3f}" if entry.quality == LPIPS else f"{entry.quality} {entry.deciding_value:.4g}"


def terms_text(entry: GoldenEntry) -> list[str]:
    """What decided an entry in another way than usual: another metric than LPIPS, DiffBench's rule."""
    terms = [f"decided by {quality_text(entry)}"] if entry.quality != LPIPS and entry.lpips is not None else []
    return terms + (["by DiffBench's rule"] if entry.rule == DIFFBENCH else [])


def metrics_text(entry: GoldenEntry) -> str:
    """A winner's metrics beside LPIPS in a line, the one that decided first; empty without any."""
    metrics = entry.metrics or {}
    said = [metric_text(name, metric) for name, metric in metrics.items() if name != entry.quality]
    return "; ".join([*decided_text(entry), *said])


def decided_text(entry: GoldenEntry) -> list[str]:
    """``decided by ssim 0.912 [0.896, 0.928], fewer steps 0.887``; nothing where LPIPS decided."""
    metric = (entry.metrics or {}).get(entry.quality)
    if metric is None:
        return []
    rival = entry.fewer_steps
    fewer = f", fewer steps {rival.quality:.4g}" if rival is not None and rival.quality is not None else ""
    return [f"decided by {metric_text(entry.quality, metric)}{fewer}"]


def metric_text(name: str, metric: GoldenMetric) -> str:
    """``clip_score 28.1 [27.2, 29.1], -1.2% [-2.0%, -0.4%]``: its value and its change, each with its interval."""
    ends = f" [{metric.ci95[0]:.4g}, {metric.ci95[1]:.4g}]" if metric.ci95 else ""
    said = f"{name} {metric.value:.4g}{ends}"
    if metric.change is not None and metric.change_ci95 is not None:
        low, high = metric.change_ci95
        said += f", {metric.change:+.1%} [{low:+.1%}, {high:+.1%}]"
    return said


def why_unattainable(entry: GoldenEntry) -> str:
    """Of a target out of reach, that it is, and why."""
    why = {"speed": "no candidate is surely fast enough", "quality": "the fast ones lose too much quality"}
    return f"unattainable: {why[entry.reason or 'speed']}"


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


def store_away_text(seconds: float, worker: str) -> str:
    """That a process waited for its store, in a line; ``worker`` is its name, empty in a session without workers."""
    return f"the store was away for {seconds:.0f} s{worker and f', as {worker} found'}; nothing of it is lost"


def provisional_text(result: Winners) -> str:
    """A group's winners before they are verified, in a line: the targets of each with its speed-up and loss."""
    said = []
    for params, same in groupby(result.provisional, key=lambda chosen: chosen.params):
        winner = list(same)
        targets = ", ".join(f"{chosen.key.target:g}x" for chosen in winner)
        said.append(f"{targets} by {spaced_params(params)} ({winner[0].speedup.value:.2f}x, {winner[0].loss_text})")
    return f"{result.cell} {result.accelerator}, to be verified: {'; '.join(said)}"
