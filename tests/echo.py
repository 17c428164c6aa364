"""A small accelerator for tests and benchmarks of the harness: real, quick to search, with winners that are clear.

It is the example of ``examples/own_method`` with a grid of the test's own, and with accidents.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from pytest_diffaccel.accelerators.base import GridSize, PipelineCall, check_integer, points
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import denoiser_of

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "own_method"

#: What goes wrong in the third denoiser call, by the value of ``mishap``; two of them only in runs of few steps.
NOTHING, ERROR, NO_MEMORY, SLOW, DEATH, SILENCE, SHORT_ERROR, SHORT_DEATH, OVERFLOW = range(9)
FEW_STEPS = 15


def spend_little() -> None:
    """Never repeat a block: for searches whose figures hardly matter."""
    from pytest_diffaccel.measure import blocks

    blocks._REPEATS = 0


def _example() -> Any:
    """The example's conftest file as a module: under its own name it would be that of any folder."""
    spec = spec_from_file_location("own_method_example", EXAMPLE / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Echo(_example().Echo):  # type: ignore[misc]
    """The example's, with a grid of points (interval, mishap)."""

    param_names = ("echo_interval", "mishap")

    def __init__(self, grid: Sequence[tuple[int, int]]) -> None:
        self._grid = grid

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        return points(self.param_names, self._grid)

    def check(self, point: Point, steps: int) -> None:
        self.check_names(point)
        check_integer(self.name, point, self.param_names[0], 1)
        check_integer(self.name, point, self.param_names[1], NOTHING, OVERFLOW)

    def interval(self, point: Point) -> int | float:
        return point[self.param_names[0]]

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        mishap = params[self.name][self.param_names[1]]
        if mishap != SILENCE:
            call = super().apply(pipeline, call, params)
        denoiser = denoiser_of(pipeline)
        answer, calls = denoiser.forward, 0

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if calls == 2:
                _go_wrong(mishap, pipeline.scheduler.num_inference_steps)
            calls += 1
            found = answer(*args, **kwargs)
            return tuple(part * math.nan for part in found) if mishap == OVERFLOW and calls > 2 else found

        denoiser.forward = forward
        return call


class Reply(Echo):
    """The same under another name: a second group of each cell."""

    name = "Reply"
    param_names = ("reply_interval", "reply_mishap")


def _go_wrong(mishap: int | float, steps: int) -> None:
    if mishap == ERROR or (mishap == SHORT_ERROR and steps < FEW_STEPS):
        raise RuntimeError("an accident in the third denoiser call")
    if mishap == NO_MEMORY:
        raise MemoryError
    if mishap == SLOW:
        time.sleep(600)
    if mishap == DEATH or (mishap == SHORT_DEATH and steps < FEW_STEPS):
        os._exit(3)
