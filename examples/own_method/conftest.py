"""A method of one's own, complete: what it is, where it applies, what shows that it acts, and its part of a script.

docs/own_method.md goes through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffaccel.accelerators.base import GridSize, Method, PipelineCall, check_integer, points
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from pytest_diffaccel.accelerators.registry import Registry


class Echo(Method):
    """Computes every n-th denoiser call, and answers those in between with the last output."""

    name = "Echo"
    param_names = ("echo_interval",)
    counted = ("echoes",)
    template = Path(__file__).with_name("echo.py.j2")

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """A case each; fewer of them where Echo is one of several methods, or a coarse grid is asked for."""
        intervals = (2, 3, 5, 10) if size == "full" else (2, 5)
        return points(self.param_names, [(interval,) for interval in intervals if interval <= cell.steps])

    def check(self, point: Point, steps: int) -> None:
        """A whole number from 1."""
        self.check_names(point)
        check_integer(self.name, point, "echo_interval", 1)

    def interval(self, point: Point) -> int | float:
        """How many calls there are for one that is computed."""
        return point["echo_interval"]

    def applies_to(self, pipeline: Any) -> str:
        """Why it does nothing good for a pipeline; nothing where it does."""
        denoiser = denoiser_of(pipeline)
        if not hasattr(denoiser, "conv_in"):
            return f"a {type(denoiser).__name__} has no layer conv_in, which tells computed calls from echoes"
        if getattr(denoiser.config, "time_cond_proj_dim", None) is not None:
            return "this UNet is distilled to a few steps, of which none is like the one before"
        return ""

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """Every call is an echo, unless the denoiser's first layer is reached."""
        yield denoiser.register_forward_pre_hook(lambda *_: tally.add("echoes"))
        yield denoiser.conv_in.register_forward_pre_hook(lambda *_: tally.add("echoes", -1))

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """An interval of 1 computes every call."""
        return frozenset(self.counted if self.interval(point) > 1 and steps > 1 else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """Two kinds of calls: those that are computed cost what they cost without Echo, the others next to nothing."""
        interval = self.interval(point)
        return ["full" if step % interval == 0 else "echo" for step in range(steps)]

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Put another function in the place of the denoiser's; it is put back by whoever calls this."""
        denoiser = denoiser_of(pipeline)
        compute, interval = denoiser.forward, self.interval(params[self.name])
        calls, last = 0, None

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls, last
            if calls % interval == 0:
                last = compute(*args, **kwargs)
            calls += 1
            return last

        denoiser.forward = forward
        return call


# Optional: the plugin may be switched off (-p no:diffaccel).
@pytest.hookimpl(optionalhook=True)
def pytest_diffaccel_accelerators(registry: Registry) -> None:
    """Let searches, the gate and ``diffaccel generate`` know the method, and a combination with another one."""
    registry.register(Echo())
    registry.combine("Echo", "ToMe")
