"""Which estimator tells a speed-up best from few blocks, and whether it is biased, on recorded blocks.

Run ``python -m benchmarks.estimators``; no pipeline is needed. Every recorded candidate has many blocks. An estimator
sees some of them, drawn at random many times; how far its estimates scatter is its standard error, and how far their
mean lies from the wall ratio of all blocks (the quotient of total times, which nothing can bias) its bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.output import parser, show
from benchmarks.recorded import Point, read
from pytest_diffaccel.measure.measurement import Block, Interval
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup

COUNTS = (4, 8, 16)
DRAWS = 40

Estimator = Callable[[Sequence[Block]], float]


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
    "step kinds (ours)": lambda blocks: step_kind_speedup(blocks).value,
    "wall (ours)": lambda blocks: wall_speedup(blocks).value,
    "quotient of means": quotient_of(np.mean),
    "quotient of medians": quotient_of(np.median),
    "quotient of minima": quotient_of(min),
    "median of ratios": median_ratio,
}


def scatter(points: Sequence[Point], estimate: Estimator, count: int) -> tuple[float, float]:
    """Standard error and bias, as shares of the speed-up, over all points."""
    errors, biases = [], []
    for number, point in enumerate(points):
        generator = np.random.default_rng([number, count])
        truth = math.log(quotient_of(sum)(point.blocks))
        logs = []
        for _ in range(DRAWS):
            drawn = generator.choice(len(point.blocks), count, replace=False)
            logs.append(math.log(estimate([point.blocks[place] for place in drawn])))
        # Drawn without replacement from few blocks: the scatter is that much smaller.
        finite = math.sqrt((len(point.blocks) - count) / (len(point.blocks) - 1))
        errors.append(float(np.std(logs)) / finite)
        biases.append(float(np.mean(logs)) - truth)
    return float(np.sqrt(np.mean(np.square(errors)))), float(np.mean(biases))


def half_width(points: Sequence[Point], interval: Callable[[Sequence[Block]], Interval], count: int) -> float:
    """Median half-width of the 95% interval from the first ``count`` blocks."""
    return float(np.median([interval(point.blocks[:count]).half_width_ratio for point in points]))


def main() -> None:
    """Print the estimators, best first."""
    arguments = parser(__doc__ or "").parse_args()
    points = [point for own in read("blocks").values() for point in own]
    rows: list[dict[str, Any]] = []
    for name, estimate in ESTIMATORS.items():
        row: dict[str, Any] = {"estimator": name}
        for count in COUNTS:
            row[f"se_{count}"], row[f"bias_{count}"] = scatter(points, estimate, count)
        rows.append(row)
    summary = {f"half_width_{count}": half_width(points, step_kind_speedup, count) for count in COUNTS}
    show("estimators of a speed-up", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
