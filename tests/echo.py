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

#: What goes wrong in the third denoiser call, by the value of ``mishap``; the last two only in runs of few steps.
NOTHING, ERROR, NO_MEMORY, SLOW, DEATH, SILENCE, SHORT_ERROR, SHORT_DEATH = range(8)
FEW_STEPS = 15


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
        check_integer(self.name, point, self.param_names[0], 1)
        check_integer(self.name, point, self.param_names[1], NOTHING, SHORT_DEATH)

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        return frozenset({"cached_steps"} if self._values(point)[0] > 1 else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        interval, _ = self._values(point)
        return ["full" if step % interval == 0 else "echo" for step in range(steps)]

    def _values(self, point: Point) -> list[int | float]:
        """Interval and mishap."""
        return [point[name] for name in self.param_names]

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        compute = pipeline.unet.forward
        interval, mishap = self._values(params[self.name])
        calls, last = 0, None

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls, last
            if calls == 2:
                _go_wrong(mishap, pipeline.scheduler.num_inference_steps)
            if calls % interval == 0 or mishap == SILENCE:
                last = compute(*args, **kwargs)
            calls += 1
            return last

        pipeline.unet.forward = forward
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
