"""The benchmarks' charts, as SVG files that are the same for the same figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.output import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Spent:
    """What a search had reached when it had spent so much.

    Attributes:
        share: of the exhaustive search's denoiser time.
        right: share of targets that are right.
        regret: mean regret, as a share of LPIPS.
    """

    share: float
    right: float
    regret: float


def search_cost(path: Path, ours: Sequence[Spent], others: Mapping[str, Sequence[Spent]]) -> None:
    """Targets right and regret against time: ours a dot per seed, others a line each."""
    with _figure(path, 2) as figure:
        right, regret = figure.axes
        for name, spent in others.items():
            shares = [100 * one.share for one in spent]
            right.plot(shares, [100 * one.right for one in spent], label=name)
            regret.plot(shares, [100 * one.regret for one in spent], label=name)
        shares = [100 * one.share for one in ours]
        right.scatter(shares, [100 * one.right for one in ours], color="black", s=12, zorder=3, label="this search")
        regret.scatter(shares, [100 * one.regret for one in ours], color="black", s=12, zorder=3, label="this search")
        right.set(xlabel="denoiser time, % of the exhaustive search", ylabel="targets right, %", ylim=(0, 102))
        regret.set(xlabel="denoiser time, % of the exhaustive search", ylabel="mean regret in LPIPS, %")
        regret.set_yscale("symlog", linthresh=1)
        for axes in figure.axes:
            axes.set_xscale("log")
            axes.set_xticks([1, 2, 5, 10, 20, 50, 100], labels=["1", "2", "5", "10", "20", "50", "100"])
        right.legend(loc="lower right", fontsize="small")


def predictions(path: Path, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Predicted against measured speed-ups, by cell: (predicted, measured) each."""
    with _figure(path, 1) as figure:
        (axes,) = figure.axes
        for name, pairs in points.items():
            axes.scatter([measured for _, measured in pairs], [said for said, _ in pairs], s=6, alpha=0.5, label=name)
        values = [value for pairs in points.values() for pair in pairs for value in pair]
        ends = [min(values), max(values)]
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.set(xlabel="measured speed-up", ylabel="predicted speed-up", xscale="log", yscale="log")
        ticks = [1, 1.5, 2, 3, 4, 6]
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.set_yticks(ticks, labels=map(str, ticks))
        axes.minorticks_off()
        axes.legend(loc="upper left", fontsize="small")


@contextmanager
def _figure(path: Path, panels: int) -> Iterator[Figure]:
    matplotlib, figures = needed("matplotlib"), needed("matplotlib.figure")
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure: Figure = figures.Figure(figsize=(4.5 * panels, 3.8), layout="constrained")
        for axes in figure.subplots(1, panels, squeeze=False).flat:
            axes.grid(alpha=0.3)
        yield figure
        figure.savefig(path, format="svg", metadata={"Date": None})
