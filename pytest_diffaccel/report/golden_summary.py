"""The golden database in one table: what each accelerator reaches at each target, over all cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median

from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.table_text import table_lines
from pytest_diffaccel.words import counted

_HEADINGS = ("target", "met", "unattainable", "median speedup", "median LPIPS", "beat fewer steps")


def summary_table(entries: Mapping[GoldenKey, GoldenEntry], width: int) -> list[str]:
    """A row per accelerator and target, as lines.

    The medians are of the cells in which the target is met; a winner "beats fewer steps" when it loses less than
    the unaccelerated pipeline at the step count that is as fast, by the metric that decided.

    Args:
        entries: winners and unattainable targets of any number of cells.
        width: characters per line; where they are too few, accelerators stand above their rows.
    """
    ordered = sorted(entries, key=lambda key: key.prompt_order[-2:])
    rows = [
        (accelerator, f"{target:g}x", *_figures([entries[key] for key in keys]))
        for (accelerator, target), keys in groupby(ordered, key=lambda key: (key.accelerator, key.target))
    ]
    lines = _lines(("accelerator", *_HEADINGS), rows)
    if max(map(len, lines)) > width:
        heading, *figures = _lines(_HEADINGS, [row[1:] for row in rows])
        lines = [f"  {heading}"]
        for accelerator, of_one in groupby(zip(rows, figures, strict=True), key=lambda both: both[0][0]):
            lines += [accelerator, *(f"  {line}" for _, line in of_one)]
    cells = {key.cell for key in entries}
    lines.append(f"{counted(len(entries), 'key')} of {counted(len(cells), 'cell')}")
    deciders = Counter(entry.quality for entry in entries.values() if entry.quality != LPIPS)
    return lines + [f"{count} of them decided by {name}, not by LPIPS" for name, count in sorted(deciders.items())]


def _lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "accelerator" else "right")
    for row in rows:
        table.add_row(*row)
    return table_lines(table, 120)


def _figures(entries: Sequence[GoldenEntry]) -> tuple[str, str, str, str, str]:
    met = [entry for entry in entries if entry.status == "met"]
    speedups = [entry.speedup for entry in met if entry.speedup is not None]
    losses = [entry.lpips for entry in met if entry.lpips is not None]
    rivals = [entry.beats_fewer_steps for entry in met if entry.beats_fewer_steps is not None]
    return (
        str(len(met)),
        str(len(entries) - len(met)),
        f"{median(speedups):.2f}x" if speedups else "-",
        f"{median(losses):.3f}" if losses else "-",
        f"{sum(rivals)} of {len(rivals)}" if rivals else "-",
    )
