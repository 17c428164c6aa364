"""How well the cost model predicts speed-ups of candidates that it has not seen, on recorded tables.

Run ``python -m benchmarks.cost_model``; no pipeline is needed. The model learns from one block each of 25
candidates, 50 timed calls in all, and predicts the candidates that were timed in many blocks, none of which it saw.
As in a search, what is timed next is what the model knows least of: the vaguest of a few candidates drawn at random.
What they measured has an error of its own; coverage counts a prediction as right when the difference lies within both
intervals together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import charts
from benchmarks.output import parser, show
from benchmarks.recorded import Point, read
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.measurement import Block, Interval
from pytest_diffaccel.measure.step_kinds import step_kind_speedup
from pytest_diffaccel.search.predict.cost_model import CostModel

# Of a block's two calls one is the baseline's.
TIMED_BLOCKS = 25
DRAWS = 10
# Candidates among which the one to be timed next is chosen.
_OFFERED = 30


def _log_sd(interval: Interval) -> float:
    return math.log(interval.high / interval.low) / (2 * 1.96)


def cell_errors(cell: Cell, tables: dict[str, Any]) -> tuple[list[tuple[float, float]], list[float], list[bool]]:
    """Predicted and measured speed-ups, errors of the logarithm, and whether each lies within the intervals."""
    registry = default_registry()
    precise = [point for point in tables["blocks"][cell] if point.candidate.params]
    names = {point.candidate for point in precise}
    seen = [point for point in tables["exhaustive"][cell] if point.blocks and point.candidate not in names]
    measured = [step_kind_speedup(point.blocks) for point in precise]
    pairs, errors, covered = [], [], []
    for seed in range(DRAWS):
        model = learnt(registry, seen, seed)
        for speedup, truth in zip(model.speedups([point.candidate for point in precise]), measured, strict=True):
            error = math.log(speedup.value / truth.value)
            pairs.append((speedup.value, truth.value))
            errors.append(error)
            covered.append(abs(error) <= 1.96 * math.hypot(_log_sd(speedup), _log_sd(truth)))
    return pairs, errors, covered


def learnt(registry: Registry, seen: Sequence[Point], seed: int) -> CostModel:
    """The model after one block each of the candidates that it knew least of."""
    generator = np.random.default_rng(seed)
    timed: list[tuple[Candidate, Sequence[Block]]] = []
    model = CostModel.fit(registry, timed)
    for _ in range(TIMED_BLOCKS):
        known = {candidate.key for candidate, _ in timed}
        offered = [seen[place] for place in generator.choice(len(seen), _OFFERED, replace=False)]
        open_ones = [point for point in offered if point.candidate.key not in known]
        speedups = model.speedups([point.candidate for point in open_ones])
        vaguest = open_ones[int(np.argmax([one.half_width_ratio for one in speedups]))]
        timed.append((vaguest.candidate, vaguest.blocks[:1]))
        model = CostModel.fit(registry, timed)
    return model


def main() -> None:
    """Print the errors by cell and in all."""
    made = parser(__doc__ or "")
    made.add_argument("--plot", type=Path, metavar="FILE", help="also draw an SVG file")
    arguments = made.parse_args()
    tables = {name: read(name) for name in ("exhaustive", "blocks")}
    rows, all_errors, all_covered, drawn = [], [], [], {}
    for cell in tables["blocks"]:
        drawn[str(cell)], errors, covered = cell_errors(cell, tables)
        rows.append({"cell": str(cell), **_figures(errors, covered)})
        all_errors += errors
        all_covered += covered
    show("predicted against measured", rows, _figures(all_errors, all_covered), as_json=arguments.json)
    if arguments.plot:
        charts.predictions(arguments.plot, drawn)


def _figures(errors: list[float], covered: list[bool]) -> dict[str, float]:
    return {
        "median_error": float(np.median(np.abs(errors))),
        "p95_error": float(np.percentile(np.abs(errors), 95)),
        "coverage": float(np.mean(covered)),
        "bias": float(np.mean(errors)),
    }


if __name__ == "__main__":
    main()
