"""A small accelerator for tests and benchmarks of the harness: real, quick to search, with winners that are clear.

It is also the example of what a user registers through ``pytest_diffaccel_accelerators``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from pytest_diffaccel.accelerators.base import GridSize, Method, PipelineCall, check_integer, points
from pytest_diffaccel.matrix import Cell, Params, Point

#: What goes wrong in the third denoiser call, by the value of ``mishap``.
NOTHING, ERROR, NO_MEMORY, SLOW, DEATH, SILENCE = range(6)


def spend_little() -> None:
    """Never repeat a block: for searches whose figures hardly matter."""
    from pytest_diffaccel.measure import blocks

    blocks._REPEATS = 0


class Echo(Method):
    """Computes every n-th denoiser call and answers the others with the last output."""

    name = "Echo"
    param_names = ("echo_interval", "mishap")

    def __init__(self, grid: Sequence[tuple[int, int]]) -> None:
        self._grid = grid

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        return points(self.param_names, self._grid)

    def check(self, point: Point, steps: int, pipeline: Any = None) -> None:
        self.check_names(point)
        check_integer(self.name, point, "echo_interval", 1)
        check_integer(self.name, point, "mishap", NOTHING, SILENCE)

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        return frozenset({"cached_steps"} if point["echo_interval"] > 1 else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        return ["full" if step % point["echo_interval"] == 0 else "echo" for step in range(steps)]

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        compute = pipeline.unet.forward
        point = params[self.name]
        calls, last = 0, None

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls, last
            if calls == 2:
                _go_wrong(point["mishap"])
            if calls % point["echo_interval"] == 0 or point["mishap"] == SILENCE:
                last = compute(*args, **kwargs)
            calls += 1
            return last

        pipeline.unet.forward = forward
        return call


def _go_wrong(mishap: int | float) -> None:
    if mishap == ERROR:
        raise RuntimeError("an accident in the third denoiser call")
    if mishap == NO_MEMORY:
        raise MemoryError
    if mishap == SLOW:
        time.sleep(600)
    if mishap == DEATH:
        os._exit(3)
