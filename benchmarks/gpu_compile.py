"""``torch.compile`` beside the accelerators: what each gives alone and together, on the full-size pipes of a GPU.

Run ``python -m benchmarks.gpu_compile`` on a GPU; some minutes per pipe, most of them compiling. The transformer blocks
of the UNet are compiled (``compile_repeated_blocks`` of diffusers), since the code of the accelerators around them
chooses by step, which a compiler of the whole UNet would have to follow. Every row is timed in the same blocks as the
eager unaccelerated pipeline, in wall time and in the GPU's own; ``graphs`` counts what was compiled for it. A method
that does not run on compiled blocks has its error instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from benchmarks.output import parser, show
from benchmarks.record_gpu import BATCHES
from pytest_diffaccel.accelerators.acceleration import Generate, accelerate
from pytest_diffaccel.matrix import PIPES, Params, format_params
from pytest_diffaccel.measure.blocks import TimedRun, run_blocks
from pytest_diffaccel.measure.busy_clock import busy
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.disturbance import watch_machine
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.models.loading import load_pipeline

Timer: TypeAlias = Callable[[Generate, list[str], list[int]], tuple[list[Any], RunTiming]]

_STEPS, _WALL_BLOCKS, _DEVICE_BLOCKS = 20, 6, 1
# Blocks have four sizes, two attentions and, with ToMe, as many ways to merge; torch's own limit of 8 is for one model.
_RECOMPILE_LIMIT = 64
_DEEPCACHE = {"cache_interval": 3, "cache_branch_id": 0}
_TGATE = {"gate_step": 10, "sp_interval": 1, "fi_interval": 1, "warm_up": 2}
_POINTS: tuple[Params, ...] = (
    {},
    {"DeepCache": _DEEPCACHE},
    {"T-Gate": _TGATE},
    {"ToMe": {"ratio": 0.5, "max_downsample": 2}},
    {"DeepCache": _DEEPCACHE, "T-Gate": _TGATE},
)


def rows_of(pipe: str) -> Iterator[dict[str, Any]]:
    """Two rows per point: eager, and with compiled transformer blocks."""
    eager: Any = load_pipeline(pipe, models="architecture")
    compiled: Any = load_pipeline(pipe, models="architecture")
    compiled.unet.compile_repeated_blocks()
    prompts, seeds = ["a lighthouse at dusk"] * BATCHES[pipe], list(range(BATCHES[pipe]))
    for params in _POINTS:
        with ExitStack() as stack:
            plain, *subjects = [
                stack.enter_context(accelerate(pipeline, chosen, steps=_STEPS))
                for pipeline, chosen in ((eager, {}), (eager, params), (compiled, params))
            ]
            batch = Batch(plain, prompts, seeds)
            batch.warm_up(plain)
            for name, subject in zip(("eager", "compiled"), subjects, strict=True):
                yield {"pipe": pipe, "params": format_params(params) or "unaccelerated", "blocks": name} | (
                    batch.figures(subject)
                )


@dataclass(frozen=True)
class Batch:
    """What is generated, and the eager unaccelerated pipeline that it is compared with."""

    plain: Generate
    prompts: list[str]
    seeds: list[int]

    def figures(self, subject: Generate) -> dict[str, Any]:
        """The columns of a row."""
        before = _graphs()
        error = self.warm_up(subject)
        graphs = _graphs() - before
        if error:
            return {"run_s": None, "wall": None, "wall_ci95": None, "device": None, "graphs": graphs, "error": error}
        blocks = self._blocks(subject, timed, _WALL_BLOCKS)
        wall = wall_speedup(blocks)
        busy_blocks = self._blocks(subject, busy, _DEVICE_BLOCKS)
        return {
            "run_s": median(block.runs[0].total_s for block in blocks),
            "wall": wall.value,
            "wall_ci95": f"{wall.low:.2f}-{wall.high:.2f}",
            "device": median(block.baseline.total_s / block.runs[0].total_s for block in busy_blocks),
            "graphs": graphs,
            "error": "",
        }

    def warm_up(self, subject: Generate) -> str:
        """Generate a few times, which compiles; the error in a line, empty when there is none."""
        try:
            for _ in range(3):
                subject(self.prompts, self.seeds)
        except Exception as error:  # whatever a compiler may raise is a result here
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:100]
        return ""

    def _blocks(self, subject: Generate, timer: Timer, count: int) -> list[Block]:
        def run(generate: Generate) -> TimedRun:
            return lambda _index: timer(generate, self.prompts, self.seeds)[1]

        watch = watch_machine(self.plain.pipeline.device, threads=1)
        return [rows[0] for rows in run_blocks(run(self.plain), [run(subject)], count, seed="0", watch=watch)]


def _graphs() -> int:
    """Graphs that torch compiled so far in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def main() -> None:
    """Print the table."""
    options = parser(__doc__ or "")
    options.add_argument("--pipe", action="append", choices=PIPES, help="only this pipe; repeatable")
    arguments = options.parse_args()
    import torch._dynamo

    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    rows = []
    for row in (row for pipe in arguments.pipe or PIPES for row in rows_of(pipe)):
        rows.append(row)
        print(f"{len(rows)} rows: {row}", file=sys.stderr, flush=True)
    show("eager and compiled transformer blocks", rows, {"steps": _STEPS}, as_json=arguments.json)


if __name__ == "__main__":
    main()
