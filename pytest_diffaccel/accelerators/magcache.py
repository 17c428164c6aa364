"""MagCache: where residuals change little in size from step to step, all blocks are skipped and the last one is added.

Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache", NeurIPS 2025, through diffusers'
``MagCacheConfig``. How much the residual (what all blocks together add) grows from each step to the next is known
beforehand, from FLUX.1's published ratios; so which steps are skipped follows from parameters and number of steps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import GridSize, InvalidParams, Method, PipelineCall, check_integer, points
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.accelerators.diffusers_caches import (
    cache_that_is_on,
    transformer_blocks_of,
    watch_idle,
    why_no_caches,
)
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

# Size of each step's residual relative to the one before, of FLUX.1 in 28 steps, as the authors published them and
# diffusers has them (FLUX_MAG_RATIOS); and the class of denoisers that they are of.
_TRANSFORMER = "FluxTransformer2DModel"
_RATIOS = (
    *(1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562),
    *(1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359),
    0.89062,
)
_THRESHOLDS: Mapping[GridSize, tuple[float, ...]] = {
    "full": (0.03, 0.06, 0.12, 0.24),
    "pair": (0.06, 0.24),
    "triple": (0.12,),
    "coarse": (0.06, 0.24),
    "coarse pair": (0.12,),
    "coarse triple": (0.12,),
}
_SKIPS: Mapping[GridSize, tuple[int, ...]] = {
    "full": (1, 3, 5),
    "pair": (1, 3),
    "triple": (1, 3),
    "coarse": (1, 3, 5),
    "coarse pair": (1, 3),
    "coarse triple": (1, 3),
}
_RETENTIONS: Mapping[GridSize, tuple[float, ...]] = {
    "full": (0.1, 0.2, 0.3),
    "pair": (0.2,),
    "triple": (0.2,),
    "coarse": (0.2,),
    "coarse pair": (0.2,),
    "coarse triple": (0.2,),
}
# Of the whole space.
_SPACE = (
    (0.01, 0.02, 0.03, 0.04, 0.06, 0.09, 0.12, 0.18, 0.24, 0.36, 0.48),
    range(1, 9),
    (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
)
# Above any sum that the ratios come to.
_HIGHEST_THRESHOLD = 100
# How much keeping the residual may cost, and skipping all blocks save: more than anything else does.
_FEATURES: Mapping[str, Mapping[str, float]] = {"computed": {"keeping": 0.05}, "skipped": {"skipped": 2.0}}


class MagCache(Method):
    """MagCache through diffusers, with the ratios of FLUX.1."""

    name = "MagCache"
    param_names = ("threshold", "max_skip_steps", "retention_ratio")
    denoiser = "transformer"
    #: Calls of blocks, summed over blocks and steps, in which nothing of them was computed.
    counted = ("skipped_blocks",)
    template = Path(__file__).with_suffix(".py.j2")

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Thresholds x longest skips x shares of steps that are kept, less the points that make the same calls."""
        return self._distinct(product(_THRESHOLDS[size], _SKIPS[size], _RETENTIONS[size]), cell.steps)

    def space(self, cell: Cell) -> Sequence[Point]:
        """Thresholds from 0.01 to 0.48 x longest skips from 1 to 8 x shares that are kept from 0.05 to 0.5."""
        return self._distinct(product(*_SPACE), cell.steps)

    def _distinct(self, rows: Iterable[Sequence[float]], steps: int) -> list[Point]:
        """The points of ``rows`` that skip anything, less those that make the same calls as an earlier one."""
        distinct: dict[tuple[bool, ...], Point] = {}
        for point in points(self.param_names, rows):
            mask = _mask(point, steps)
            if not all(mask):
                distinct.setdefault(mask, point)
        return list(distinct.values())

    def check(self, point: Point, steps: int) -> None:
        """Threshold from 0 to 100, longest skip at least 0, the share of steps that are kept from 0 to 1 (= all)."""
        self.check_names(point)
        for name, high in (("threshold", _HIGHEST_THRESHOLD), ("retention_ratio", 1)):
            value = point[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
                raise InvalidParams(f"{self.name}: {name}={value!r} must be a number from 0 to {high}")
        check_integer(self.name, point, "max_skip_steps", 0)

    def applies_to(self, pipeline: Any) -> str:
        """The denoiser's ratios must be known, and the pipeline must tell it of calls."""
        if reason := why_no_caches(pipeline):
            return reason
        kind = type(denoiser_of(pipeline)).__name__
        if kind != _TRANSFORMER:
            return f"of a {kind} it is not known how its residuals grow, as it is of a {_TRANSFORMER}"
        return ""

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """A denoiser takes one of diffusers' caches at a time."""
        return cache_that_is_on(pipeline)

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """Every call of a block counts, and the first of its parts to run takes it back."""
        for block in transformer_blocks_of(denoiser):
            yield from watch_idle(block, tally, "skipped_blocks")

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """Where the threshold lets no step go, nothing is skipped."""
        return frozenset(() if all(_mask(point, steps)) else {"skipped_blocks"})

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """``computed`` where all blocks run, ``skipped`` where none does."""
        return ["computed" if computes else "skipped" for computes in _mask(point, steps)]

    def features(self, kind: str) -> Mapping[str, float]:
        """A skipped step costs next to nothing, a computed one a little more than a plain one."""
        return _FEATURES[kind]

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """Share of the steps that are skipped, how early the first is, and how many are skipped on end."""
        mask = _mask(point, cell.steps)
        longest = max((len(list(run)) for computes, run in groupby(mask) if not computes), default=0)
        begins = mask.index(False) if longest else cell.steps
        return mask.count(False) / cell.steps, 1 - begins / cell.steps, longest / (longest + 1)

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Enable the cache, which knows when a generation ends by its number of steps."""
        from diffusers import MagCacheConfig

        denoiser, point = denoiser_of(pipeline), params[self.name]

        def begin(**options: Any) -> Any:
            steps = options["num_inference_steps"]
            config = MagCacheConfig(**point, num_inference_steps=steps, mag_ratios=_ratios_in(steps))
            denoiser.enable_cache(config)
            return call(**options)

        return begin


def _mask(point: Point, steps: int) -> tuple[bool, ...]:
    """Whether each step computes, as diffusers' hook decides, which counts in single precision."""
    kept, threshold = int(point["retention_ratio"] * steps + 0.5), _single(point["threshold"])
    mask, ratio, error, skipped = [], 1.0, 0.0, 0
    for step, scale in enumerate(_ratios_in(steps)):
        computes = step < kept
        if not computes:
            ratio, skipped = _single(ratio * _single(scale)), skipped + 1
            error = _single(error + abs(_single(1.0 - ratio)))
            # In the first step there is no residual to add.
            computes = step == 0 or error > threshold or skipped > point["max_skip_steps"]
            if computes:
                ratio, error, skipped = 1.0, 0.0, 0
        mask.append(computes)
    return tuple(mask)


def _ratios_in(steps: int) -> list[float]:
    """As diffusers takes those of another number of steps, and so a script."""
    if steps == 1:
        return [_RATIOS[-1]]
    scale = _single((len(_RATIOS) - 1) / (steps - 1))
    return [_RATIOS[round(_single(step * scale))] for step in range(steps)]


def _single(value: float) -> float:
    """The nearest number of single precision."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)
