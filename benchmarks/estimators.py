"""Which estimator tells a speed-up best from few blocks, and whether it is biased, on recorded blocks.

Run ``python -m benchmarks.estimators``; no pipeline is needed. Every recorded candidate has many blocks. An estimator
sees some of them, drawn at random many times; how far its estimates scatter is its standard error (``se``), and how far
their mean lies from the wall ratio of all blocks (the quotient of total times, which nothing can bias) its ``bias``.
``coverage`` is the share of its 95% intervals that hold that ratio, ``half_width`` the median of half their width. One
machine was quiet; the other, a virtual one, switches between two speeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from benchmarks.output import parser, show
from benchmarks.recorded import Point, read, read_idle_vm
from pytest_diffaccel.gate.figures import Figure
from pytest_diffaccel.measure.measurement import Block, Interval
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup

# Blocks for which the bias is shown by accelerator.
_SHOWN = 8

Estimator: TypeAlias = Callable[[Sequence[Block]], float | Interval]


def _totals(blocks: Sequence[Block]) -> tuple[list[float], list[float]]:
    return [block.baseline.total_s for block in blocks], [block.runs[0].total_s for block in blocks]


def quotient_of(pick: Callable[[list[float]], Any]) -> Estimator:
    """Quotient of two numbers, each picked from all runs of its kind: what comparing two benchmarks does."""

    def estimate(blocks: Sequence[Block]) -> float:
        baseline, candidate = _totals(blocks)
        return float(pick(baseline) / pick(candidate))

    return estimate


def median_ratio(blocks: Sequence[Block]) -> float:
    """Median of the blocks' ratios of whole runs."""
    return float(np.median([block.baseline.total_s / block.runs[0].total_s for block in blocks]))


ESTIMATORS: Mapping[str, Estimator] = {
    "step kinds (ours)": step_kind_speedup,
    "wall (ours)": wall_speedup,
    "fast steps": lambda blocks: math.exp(Figure.from_blocks(blocks).log_speedup),
    "quotient of means": quotient_of(np.mean),
    "quotient of medians": quotient_of(np.median),
    "quotient of minima": quotient_of(min),
    "median of ratios": median_ratio,
}


@dataclass(frozen=True)
class Machine:
    """Blocks recorded on one machine.

    Attributes:
        points: its candidates.
        counts: of how many blocks estimates are made.
        draws: how often, of each candidate.
    """

    points: Sequence[Point]
    counts: tuple[int, ...]
    draws: int


@dataclass(frozen=True)
class Scatter:
    """Estimates of one candidate from some of its blocks, as logarithms.

    Attributes:
        se: their standard deviation.
        bias: how far their mean lies above the truth.
        held: share of intervals that hold the truth; NaN without intervals.
        half_width: median half-width of the intervals, as a share of the estimate; NaN without.
    """

    se: float
    bias: float
    held: float = math.nan
    half_width: float = math.nan


def scatter(blocks: Sequence[Block], estimate: Estimator, count: int, draws: int, seed: int) -> Scatter:
    """Estimates from ``count`` of the blocks at a time.

    Drawn without replacement from few blocks, estimates scatter less than those from other blocks would; that is
    corrected, for the intervals, too.
    """
    generator = np.random.default_rng([seed, count])
    truth = math.log(quotient_of(sum)(blocks))
    drawn = [generator.choice(len(blocks), count, replace=False) for _ in range(draws)]
    made = [estimate([blocks[place] for place in places]) for places in drawn]
    finite = math.sqrt((len(blocks) - count) / (len(blocks) - 1))
    errors = np.array([math.log(one.value if isinstance(one, Interval) else one) - truth for one in made])
    se, bias = float(np.std(errors)) / finite, float(np.mean(errors))
    intervals = [one for one in made if isinstance(one, Interval)]
    if not intervals:
        return Scatter(se, bias)
    halves = [math.log(one.high / one.value) for one in intervals]
    held = float(np.mean(np.abs(bias + (errors - bias) / finite) <= halves))
    return Scatter(se, bias, held, float(np.median([one.half_width_ratio for one in intervals])))


def row(scatters: Sequence[Scatter]) -> dict[str, Any]:
    """Figures over all candidates of a machine."""
    figures = {
        "se": float(np.sqrt(np.mean([one.se**2 for one in scatters]))),
        "bias": float(np.mean([one.bias for one in scatters])),
        "coverage": float(np.mean([one.held for one in scatters])),
        "half_width": float(np.median([one.half_width for one in scatters])),
    }
    return {name: "-" if math.isnan(figure) else figure for name, figure in figures.items()}


def main() -> None:
    """Print a row per estimator, machine and number of blocks."""
    arguments = parser(__doc__ or "").parse_args()
    machines = {
        "quiet": Machine([point for own in read("blocks").values() for point in own], (4, 8, 16), 40),
        "two speeds": Machine(read_idle_vm(), (3, 5, 8), 1000),
    }
    rows: list[dict[str, Any]] = []
    biases: dict[str, list[float]] = {}
    for machine, own in machines.items():
        for count in own.counts:
            for name, estimate in ESTIMATORS.items():
                scatters = [
                    scatter(point.blocks, estimate, count, own.draws, number) for number, point in enumerate(own.points)
                ]
                rows.append({"machine": machine, "blocks": count, "estimator": name, **row(scatters)})
                if (machine, count, estimate) == ("quiet", _SHOWN, step_kind_speedup):
                    for point, one in zip(own.points, scatters, strict=True):
                        biases.setdefault(point.candidate.accelerator or "unaccelerated", []).append(one.bias)
    summary = {f"bias of step kinds, {name}": float(np.mean(found)) for name, found in biases.items()}
    show("estimators of a speed-up", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
