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
from pytest_diffaccel.gate.figures import Figure
from pytest_diffaccel.measure.measurement import Block, Interval
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup

COUNTS = (4, 8, 16)
DRAWS = 40
# Blocks for which the bias is shown by accelerator.
_SHOWN = 8

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
    "its fast steps alone": lambda blocks: math.exp(Figure.from_blocks(blocks).log_speedup),
    "wall (ours)": lambda blocks: wall_speedup(blocks).value,
    "quotient of means": quotient_of(np.mean),
    "quotient of medians": quotient_of(np.median),
    "quotient of minima": quotient_of(min),
    "median of ratios": median_ratio,
}


def scatter(points: Sequence[Point], estimate: Estimator, count: int) -> tuple[float, dict[str, float]]:
    """Standard error over all points, and mean bias by accelerator, as shares of the speed-up."""
    errors: list[float] = []
    biases: dict[str, list[float]] = {}
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
        own = biases.setdefault(point.candidate.accelerator or "unaccelerated", [])
        own.append(float(np.mean(logs)) - truth)
    return float(np.sqrt(np.mean(np.square(errors)))), {name: float(np.mean(own)) for name, own in biases.items()}


def half_width(points: Sequence[Point], interval: Callable[[Sequence[Block]], Interval], count: int) -> float:
    """Median half-width of the 95% interval from the first ``count`` blocks."""
    return float(np.median([interval(point.blocks[:count]).half_width_ratio for point in points]))


def main() -> None:
    """Print the estimators, best first."""
    arguments = parser(__doc__ or "").parse_args()
    points = [point for own in read("blocks").values() for point in own]
    rows: list[dict[str, Any]] = []
    ours: dict[str, float] = {}
    for name, estimate in ESTIMATORS.items():
        row: dict[str, Any] = {"estimator": name}
        for count in COUNTS:
            row[f"se_{count}"], biases = scatter(points, estimate, count)
            row[f"bias_{count}"] = float(np.mean(list(biases.values())))
            ours = ours or (biases if count == _SHOWN else {})
        rows.append(row)
    summary: dict[str, Any] = {f"half_width_{count}": half_width(points, step_kind_speedup, count) for count in COUNTS}
    summary[f"bias_{_SHOWN} of ours"] = {name: round(bias, 4) for name, bias in ours.items()}
    show("estimators of a speed-up", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
