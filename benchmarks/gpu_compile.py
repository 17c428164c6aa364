"""The compiled stack beside the accelerators: what each gives alone and together, on the full-size pipes of a GPU.

Run ``python -m benchmarks.gpu_compile`` on a GPU; some minutes per pipe, most of them compiling. Each point is timed
eager and on the stack of ``--stack compiled`` (with ``--part``: of other parts), all of them in the same blocks as the
eager unaccelerated pipeline, in wall time and in the GPU's own: speed-ups are over that. ``graphs``, ``breaks`` and
``set_up_s`` are what was compiled for a point, beforehand. What is known is printed after every block: whoever cuts the
run off has it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from benchmarks.output import parser, show
from benchmarks.record_gpu import BATCHES
from pytest_diffaccel.accelerators.acceleration import Generate, accelerate
from pytest_diffaccel.accelerators.stack import PARTS, Prepared, prepared
from pytest_diffaccel.matrix import PIPES, Params, format_params
from pytest_diffaccel.measure.blocks import TimedRun, run_blocks
from pytest_diffaccel.measure.busy_clock import KernelTimes, busy
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.disturbance import watch_machine
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.models.loading import load_pipeline

Timer: TypeAlias = Callable[[Generate, list[str], list[int]], RunTiming]

_FLUX = "FLUX.1"
_STEPS = dict.fromkeys(PIPES, 20) | {_FLUX: 28}
# Blocks by each clock in each turn: whoever cuts the run off has figures of both.
_TURNS, _WALL_BLOCKS, _DEVICE_BLOCKS = 3, 2, 1
_DEEPCACHE = {"cache_interval": 3, "cache_branch_id": 0}
_TGATE = {"gate_step": 10, "sp_interval": 1, "fi_interval": 1, "warm_up": 2}
# With these thresholds (of gpu_transformers) the weights of the architecture reuse about half of FLUX.1's steps.
_DBCACHE = {
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 4,
    "max_continuous_cached_steps": 6,
    "residual_diff_threshold": 0.501,
    "taylorseer_order": 0,
    "steps_mask": 0,
}
_OF_UNETS: tuple[Params, ...] = (
    {},
    {"DeepCache": _DEEPCACHE},
    {"T-Gate": _TGATE},
    {"ToMe": {"ratio": 0.5, "max_downsample": 2}},
    {"DeepCache": _DEEPCACHE, "T-Gate": _TGATE},
)
_POINTS: dict[str, tuple[Params, ...]] = dict.fromkeys(PIPES, _OF_UNETS) | {
    _FLUX: (
        {},
        {"FirstBlockCache": {"threshold": 0.473}},
        {"DBCache": _DBCACHE},
        {"TaylorSeer": {"cache_interval": 5, "disable_cache_before_step": 3, "max_order": 1}},
        {"MagCache": {"threshold": 0.12, "max_skip_steps": 3, "retention_ratio": 0.2}},
    )
}


@dataclass
class Subject:
    """A point, eager or on the stack.

    Attributes:
        params: its parameters.
        generate: makes it.
        stack: the pipeline on its stack.
        is_eager: whether it is timed eager.
        kernels: of its profiled runs.
        error: why it does not run, in a line; empty where it does.
    """

    params: Params
    generate: Generate
    stack: Prepared
    is_eager: bool
    kernels: KernelTimes
    error: str = ""

    def run(self, timer: Timer, prompts: list[str], seeds: list[int]) -> RunTiming:
        """Time it once."""
        with self.stack.eager() if self.is_eager else nullcontext():
            return timer(self.generate, prompts, seeds)

    def busy(self, prompts: list[str], seeds: list[int]) -> RunTiming:
        """The same by the GPU's own time."""
        return self.run(lambda generate, *batch: busy(generate, *batch, self.kernels)[1], prompts, seeds)

    def wall(self, prompts: list[str], seeds: list[int]) -> RunTiming:
        """The same by the wall clock."""
        return self.run(lambda generate, *batch: timed(generate, *batch)[1], prompts, seeds)


_Clock: TypeAlias = Callable[[Subject, list[str], list[int]], RunTiming]


def tables(
    pipe: str, parts: Sequence[str] | None, points: Sequence[Params], turns: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a pipe, anew after each block."""
    pipeline: Any = load_pipeline(pipe, models="architecture")
    pipeline.set_progress_bar_config(disable=True)
    prompts, seeds = ["a lighthouse at dusk"] * BATCHES[pipe], list(range(BATCHES[pipe]))
    with prepared(pipeline, "compiled", parts) as stack, ExitStack() as open_ones:
        subjects = [
            Subject(
                params, open_ones.enter_context(accelerate(pipeline, params, steps=_STEPS[pipe])), stack, eager, times
            )
            for params in points
            for eager, times in ((True, KernelTimes()), (False, KernelTimes()))
        ]
        for subject in subjects:
            _warm_up(subject, prompts, seeds)
        working = [subject for subject in subjects if not subject.error]
        wall, device = list[tuple[Block, ...]](), list[tuple[Block, ...]]()
        for turn in range(turns):
            for own, clock, count in ((wall, Subject.wall, _WALL_BLOCKS), (device, Subject.busy, _DEVICE_BLOCKS)):

                def run_of(subject: Subject, by: _Clock = clock) -> TimedRun:
                    return lambda _index: by(subject, prompts, seeds)

                watch = watch_machine(pipeline.device, threads=1)
                plain, *others = map(run_of, working)
                for rows in run_blocks(plain, others, count, seed=f"{turn}", watch=watch, repeats=0):
                    own.append(rows)
                    yield [_row(pipe, subject, working, wall, device) for subject in subjects]


def _warm_up(subject: Subject, prompts: list[str], seeds: list[int]) -> None:
    """Time it once, which compiles first."""
    try:
        subject.wall(prompts, seeds)
    except Exception as error:  # whatever a compiler may raise is a result here
        subject.error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:100]


def _row(
    pipe: str,
    subject: Subject,
    working: Sequence[Subject],
    wall: Sequence[tuple[Block, ...]],
    device: Sequence[tuple[Block, ...]],
) -> dict[str, Any]:
    place = working.index(subject) - 1 if subject in working else None

    def speedups(rows: Sequence[tuple[Block, ...]]) -> list[Any]:
        if place is None or not rows:
            return [None, None]
        if place < 0:
            return [1.0, None]
        found = wall_speedup([row[place] for row in rows])
        return [found.value, f"{found.low:.2f}-{found.high:.2f}"]

    set_up = subject.generate.set_up
    return {
        "pipe": pipe,
        "steps": _STEPS[pipe],
        "method": " and ".join(subject.params) or "none",
        "params": format_params(subject.params),
        "stack": "eager" if subject.is_eager else "compiled",
        **dict(zip(("wall", "wall_ci95"), speedups(wall), strict=True)),
        "device": speedups(device)[0],
        "graphs": set_up.graphs,
        "breaks": set_up.graph_breaks,
        "set_up_s": set_up.seconds,
        "error": subject.error,
    }


def main() -> None:
    """Print the table."""
    options = parser(__doc__ or "")
    options.add_argument("--pipe", action="append", choices=_STEPS, help="only this pipe; repeatable")
    options.add_argument(
        "--part",
        action="append",
        choices=[*PARTS, "none"],
        help="what is prepared beside the compiled blocks; repeatable (default: what suits the device)",
    )
    options.add_argument("--unaccelerated", action="store_true", help="without any method")
    options.add_argument("--turns", type=int, default=_TURNS, help=f"of blocks by both clocks (default: {_TURNS})")
    arguments = options.parse_args()
    parts = arguments.part and [part for part in arguments.part if part != "none"]
    known: dict[str, list[dict[str, Any]]] = {}
    for pipe in arguments.pipe or _STEPS:
        points = _POINTS[pipe][:1] if arguments.unaccelerated else _POINTS[pipe]
        for rows in tables(pipe, parts, points, arguments.turns):
            known[pipe] = rows
            print(json.dumps(rows), file=sys.stderr, flush=True)
    show("eager and on the compiled stack", list(chain(*known.values())), {}, as_json=arguments.json)


if __name__ == "__main__":
    main()
