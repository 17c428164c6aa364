"""Caches of transformers on full-size FLUX.1: speed-ups predicted from short runs beside whole generations.

Run ``python -m benchmarks.gpu_transformers`` on a GPU of 80 GB; about eight minutes, and with ``--compile`` some more.
Weights are random (17 billion, bfloat16), pictures 1024 x 1024, one per call, 28 steps. Runs of 8 and 12
steps tell what each kind of step costs, by the wall clock and by the GPU's own time; from these the speed-up of each
candidate is predicted, then measured in whole generations beside unaccelerated ones. Where pictures decide how many
steps are reused, a column says what was foreseen of them, another what follows once its runs have decided. The
thresholds of FirstBlockCache and DBCache are those by which these weights reuse about the shares of the steps named
below: real weights have others. DBCache needs cache-dit (``pip install 'pytest-diffaccel[cache-dit]'``).
``--method NAME`` looks at that cache alone: each of them compiles the blocks anew.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from statistics import median
from typing import Any

from benchmarks.output import needed, parser, show
from pytest_diffaccel.accelerators.acceleration import Generate, accelerate
from pytest_diffaccel.accelerators.base import Foresight
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import Candidate, Cell, Group, Params, Point
from pytest_diffaccel.measure.busy_clock import busy
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.measurement import Block, RunTiming, SpeedClock
from pytest_diffaccel.models.loading import load_pipeline
from pytest_diffaccel.search.calibrate.short_runs import ShortRuns
from pytest_diffaccel.search.predict.cost_model import CostModel
from pytest_diffaccel.search.predict.kind_costs import KindCosts
from pytest_diffaccel.search.predict.step_counts import StepCounts, decided_in

_CELL = Cell("FLUX.1", "FlowMatchEulerDiscreteScheduler", 28)
_PROMPTS, _SEEDS = ["a lighthouse at dusk"], [0]
_METHODS = ("TaylorSeer", "MagCache", "FirstBlockCache", "DBCache")
_TAYLORSEER = ((2, 3, 1), (3, 3, 1), (5, 3, 1), (4, 5, 2))
_MAGCACHE = ((0.06, 1, 0.2), (0.12, 3, 0.2), (0.24, 5, 0.1))
# Shares of the steps that FirstBlockCache reuses; DBCache's with its first blocks and the order of its series.
_SHARES = (1 / 3, 1 / 2, 2 / 3)
_DBCACHE = ((1, 0, 1 / 3), (1, 0, 1 / 2), (8, 0, 1 / 2), (1, 1, 1 / 2))
# Each cache has its hooks on every block; torch's own limit of 8 is for one model.
_RECOMPILE_LIMIT = 64
_CLOCKS: tuple[SpeedClock, ...] = ("wall", "device")
_ROUNDS = {"wall": 3, "device": 2}
_WHOLE = {"wall": 2, "device": 1}


class Bench:
    """A full-size pipeline, and what is timed on it."""

    def __init__(self, pipeline: Any, methods: Sequence[str]) -> None:
        self.pipeline = pipeline
        self.registry = default_registry()
        foresights = {name: self._foresight(name) for name in ("FirstBlockCache", "DBCache")}
        every = [self._candidate(params) for params in _params(foresights)]
        self.candidates = [candidate for candidate in every if candidate.accelerator in methods]
        self.foresights = {Group(_CELL, name): [one] for name, one in foresights.items()}
        self.counts = StepCounts(self.registry, self.foresights)

    def _foresight(self, name: str) -> Foresight:
        (accelerator,) = self.registry.select([name])
        with self._generating(_CELL, accelerator.extremes[0]) as generate:
            foresight: Foresight = generate.foreseen(_PROMPTS, _SEEDS)
        return foresight

    def _candidate(self, params: Params) -> Candidate:
        return Candidate(_CELL, self.registry.for_params(params).name, params)

    def _generating(self, cell: Cell, params: Params) -> AbstractContextManager[Generate]:
        return accelerate(self.pipeline, params, steps=cell.steps, registry=self.registry)

    def blocks(self, runs: Sequence[Candidate], clock: SpeedClock, count: int) -> list[tuple[Candidate, list[Block]]]:
        """Blocks of an unaccelerated run and one of each of ``runs``, all of as many steps, in random order."""
        made: list[tuple[Candidate, list[Block]]] = [(run, []) for run in runs]
        with ExitStack() as stack:
            plain, *subjects = [
                stack.enter_context(self._generating(runs[0].cell, params))
                for params in ({}, *(run.params for run in runs))
            ]
            for place in range(count):
                started_at, order = time.time(), list(range(1 + len(subjects)))
                random.Random(f"{clock} {place}").shuffle(order)
                times = {at: _time((plain, *subjects)[at], clock) for at in order}
                for at, (_, own) in enumerate(made, start=1):
                    own.append(Block(times[0], (times[at],), "", started_at))
        return made

    def warm_up(self, runs: Sequence[Candidate]) -> None:
        """Make each run once, and the unaccelerated one three times: what compiles does so here."""
        for params in ({}, {}, {}, *(run.params for run in runs)):
            with self._generating(runs[0].cell, params) as generate:
                generate.observed(_PROMPTS, _SEEDS, None)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row per candidate: predicted and measured speed-up by both clocks, and seconds of a generation."""
        short = ShortRuns.of(self.registry, self.candidates, self.counts).runs
        by_steps = {
            steps: [run for run in short if run.cell.steps == steps] for steps in sorted({r.cell.steps for r in short})
        }
        for runs in by_steps.values():
            self.warm_up(runs)
        self.warm_up(self.candidates)
        foreseen, predicted, measured = {}, {}, {}
        for clock in _CLOCKS:
            told = [pair for runs in by_steps.values() for pair in self.blocks(runs, clock, _ROUNDS[clock])]
            costs = KindCosts.from_blocks(told, clock)
            foreseen[clock] = CostModel(self.registry, costs, self.counts).speedups(self.candidates)
            _say({clock: {kind: round(math.exp(cost.log_ratio), 4) for kind, cost in costs.kinds.items()}})
            measured[clock] = self.blocks(self.candidates, clock, _WHOLE[clock])
            decided = {candidate: decided_in(blocks) for candidate, blocks in measured[clock]}
            counts = StepCounts(self.registry, self.foresights, decided)
            predicted[clock] = CostModel(self.registry, costs, counts).speedups(self.candidates)
            _say({clock: [round(_speedup(blocks), 4) for _, blocks in measured[clock]]})
        for place, candidate in enumerate(self.candidates):
            row: dict[str, Any] = {"method": candidate.accelerator, "params": _short(candidate.params)}
            for clock in _CLOCKS:
                blocks = measured[clock][place][1]
                found, told_of_it = _speedup(blocks), predicted[clock][place].value
                row |= {
                    f"{clock}_s": median(block.runs[0].total_s for block in blocks),
                    f"{clock}_foreseen": foreseen[clock][place].value,
                    f"{clock}_predicted": told_of_it,
                    f"{clock}_measured": found,
                    f"{clock}_off": told_of_it / found - 1,
                }
            yield row


def _params(foresights: Mapping[str, Foresight]) -> Iterator[Params]:
    for interval, before, order in _TAYLORSEER:
        yield {"TaylorSeer": {"cache_interval": interval, "disable_cache_before_step": before, "max_order": order}}
    for threshold, skips, retention in _MAGCACHE:
        yield {"MagCache": {"threshold": threshold, "max_skip_steps": skips, "retention_ratio": retention}}
    thresholds = [float(f"{10 ** (power / 40):.3g}") for power in range(-160, 61)]
    for share in _SHARES:
        points: list[Point] = [{"threshold": threshold} for threshold in thresholds]
        yield {"FirstBlockCache": _nearest(foresights["FirstBlockCache"], points, share)}
    for blocks, order, share in _DBCACHE:
        points = [
            {
                "Fn_compute_blocks": blocks,
                "max_warmup_steps": 4,
                "max_continuous_cached_steps": 6,
                "residual_diff_threshold": threshold,
                "taylorseer_order": order,
                "steps_mask": 0,
            }
            for threshold in thresholds
            if threshold < 1
        ]
        yield {"DBCache": _nearest(foresights["DBCache"], points, share)}


def _nearest(foresight: Foresight, points: Sequence[Point], share: float) -> Point:
    """The point whose steps are reused by ``share``, about."""
    return min(points, key=lambda point: abs(_reused(foresight, point) - share))


def _short(params: Params) -> str:
    """The values alone, in their order."""
    return ", ".join(f"{value:g}" for point in params.values() for value in point.values())


def _reused(foresight: Foresight, point: Point) -> float:
    steps = foresight.decisions(point)
    return sum(all(step) for step in steps) / len(steps)


def _time(generate: Generate, clock: SpeedClock) -> RunTiming:
    return (timed if clock == "wall" else busy)(generate, _PROMPTS, _SEEDS)[1]


def _speedup(blocks: Sequence[Block]) -> float:
    return median(block.baseline.total_s / block.runs[0].total_s for block in blocks)


def _say(told: Any) -> None:
    print(told, file=sys.stderr, flush=True)


def main() -> None:
    """Print the table."""
    options = parser(__doc__ or "")
    options.add_argument("--compile", action="store_true", help="compile the transformer's blocks first")
    options.add_argument("--method", choices=_METHODS, help="this cache alone")
    options.add_argument("--models", default="architecture", help="model source (default: architecture)")
    arguments = options.parse_args()
    methods = [arguments.method] if arguments.method else _METHODS
    needed("cache_dit", "cache-dit")
    began = time.monotonic()
    pipeline: Any = load_pipeline("FLUX.1", models=arguments.models)
    pipeline.set_progress_bar_config(disable=True)
    if arguments.compile:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
        pipeline.transformer.compile_repeated_blocks()
    _say(f"ready in {time.monotonic() - began:.0f} s")
    rows = list(Bench(pipeline, methods).rows())
    off = {f"{clock}_median_off": median(abs(row[f"{clock}_off"]) for row in rows) for clock in _CLOCKS}
    blocks = "compiled" if arguments.compile else "eager"
    show(f"caches of transformers, {blocks} blocks", rows, {"steps": _CELL.steps} | off, as_json=arguments.json)


if __name__ == "__main__":
    main()
