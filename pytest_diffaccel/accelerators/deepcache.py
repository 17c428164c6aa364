"""DeepCache: deep UNet features are computed every few steps and reused in between.

Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024, section 3.3 (uniform 1:N
inference), through the authors' package of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import GridSize, Method, PipelineCall, check_integer, points
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import BUILT_IN, denoiser_of, described

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

# A branch is a layer of a down block: the package counts three per block, whatever it has: its resnets, then its
# downsampler.
_LAYERS_PER_BLOCK = 3
# The deepest branch of any built-in pipe.
_DEEPEST = _LAYERS_PER_BLOCK * max(len(spec.topology.layers) for spec in BUILT_IN) - 1
# How much storing features may cost, a shallow step's level and a single branch may differ from what depth says.
_STORING_SHARE, _LEVEL_SHARE, _OWN_SHARE = 0.05, 0.2, 0.05

_INTERVALS: Mapping[GridSize, tuple[int, ...]] = {
    "full": (2, 3, 4, 5, 6, 8, 10),
    "pair": (2, 3, 5, 8),
    "triple": (2, 3, 5),
    "coarse": (2, 3, 5, 10),
    "coarse pair": (2, 3, 5),
    "coarse triple": (2, 3, 5),
}
# None: every branch the pipe has.
_BRANCHES: Mapping[GridSize, tuple[int, ...] | None] = {
    "full": None,
    "pair": (0, 3),
    "triple": (0, 3),
    "coarse": (0, 3),
    "coarse pair": (0,),
    "coarse triple": (0,),
}


class DeepCache(Method):
    """DeepCache through ``DeepCacheSDHelper``, with its uniform schedule."""

    name = "DeepCache"
    param_names = ("cache_interval", "cache_branch_id")
    denoiser = "unet"
    #: Denoiser calls in which the deepest block did not run.
    counted = ("cached_steps",)
    template = Path(__file__).with_suffix(".py.j2")

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Intervals x branches; intervals above the number of steps would all mean the same and are left out."""
        chosen, there = _BRANCHES[size], branches_of_pipe(cell.pipe)
        branches = [branch for branch in there if chosen is None or branch in chosen]
        intervals = [interval for interval in _INTERVALS[size] if interval <= cell.steps]
        return points(self.param_names, product(intervals, branches))

    def space(self, cell: Cell) -> Sequence[Point]:
        """Intervals from 2 to the number of steps x every branch."""
        return points(self.param_names, product(range(2, cell.steps + 1), branches_of_pipe(cell.pipe)))

    def check(self, point: Point, steps: int) -> None:
        """``cache_interval`` at least 1; ``cache_branch_id`` at least 0."""
        self.check_names(point)
        check_integer(self.name, point, "cache_interval", 1)
        check_integer(self.name, point, "cache_branch_id", 0)

    def applies_to(self, pipeline: Any) -> str:
        """The package patches down, mid and up blocks, and keeps what goes from one to the other."""
        unet = denoiser_of(pipeline)
        if not (getattr(unet, "down_blocks", None) and getattr(unet, "up_blocks", None)):
            return f"{type(unet).__name__} has no down and up blocks, whose features it keeps from step to step"
        if getattr(unet, "mid_block", None) is None:
            return "it cannot run a UNet without a mid block, such as this one"
        return ""

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """``cache_branch_id`` must be a branch that the UNet has."""
        branch, branches = point["cache_branch_id"], _branches_of(denoiser_of(pipeline))
        if branch in branches:
            return ""
        if branches[-1] == len(branches) - 1:
            return f"cache_branch_id={branch} must be a whole number from 0 to {branches[-1]}"
        return (
            f"cache_branch_id={branch} must be one of {', '.join(map(str, branches))}: three are counted a down block, "
            "and this UNet's have fewer layers"
        )

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """Every call counts, and the deepest block takes it back."""
        yield denoiser.register_forward_pre_hook(lambda *_: tally.add("cached_steps"))
        yield denoiser.mid_block.resnets[0].register_forward_pre_hook(lambda *_: tally.add("cached_steps", -1))

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """Interval 1 computes every step in full."""
        return frozenset({"cached_steps"} if point["cache_interval"] > 1 and steps > 1 else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """``full`` where the features are computed and stored, ``shallow@branch`` where they are reused."""
        shallow = f"shallow@{point['cache_branch_id']}"
        kinds, start = [], 0
        for step in range(steps):
            if step in restarts:
                start = step
            kinds.append("full" if (step - start) % point["cache_interval"] == 0 else shallow)
        return kinds

    def features(self, kind: str) -> Mapping[str, float]:
        """A smooth curve of the branch's depth, steep at the first branches: each adds its layers to what is computed.

        The deepest branch costs about as much as a full step, and a full step little more than a plain one.
        """
        if kind == "full":
            return {"storing": _STORING_SHARE}
        branch = int(kind.partition("@")[2])
        left = 1 - branch / _DEEPEST
        return {
            "shallow": _LEVEL_SHARE,
            "left out": left,
            "squared left out": left**2,
            "logarithm of depth": math.log((branch + 1) / (_DEEPEST + 1)) / math.log(_DEEPEST + 1),
            kind: _OWN_SHARE,
        }

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """Share of the steps that are shallow, and how shallow: branch 0 is 2, as neighbours differ much."""
        return 1 - 1 / point["cache_interval"], 2 * (1 - point["cache_branch_id"] / branches_of_pipe(cell.pipe)[-1])

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Enable the helper; its cache lives as long as this application."""
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipeline)
        helper.set_params(**params[self.name])
        helper.enable()
        return call


def branches_of_pipe(pipe: str) -> Sequence[int]:
    """The branches of a pipe's UNet, ascending, before it is loaded."""
    return _branches(described(pipe).topology.layers)


def _branches_of(unet: Any) -> Sequence[int]:
    return _branches(tuple(len(block.resnets) for block in unet.down_blocks))


@cache  # a search asks for each of thousands of points
def _branches(layers: tuple[int, ...]) -> Sequence[int]:
    """By the resnets of each down block: where one has but one, the third branch would be the second once more."""
    return tuple(
        _LAYERS_PER_BLOCK * place + layer
        for place, count in enumerate(layers)
        for layer in range(min(_LAYERS_PER_BLOCK, count + 1))
    )
