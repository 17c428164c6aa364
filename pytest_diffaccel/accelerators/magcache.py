"""MagCache: where residuals change little in size from step to step, all blocks are skipped and the last one is added.

Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache", NeurIPS 2025, through diffusers'
``MagCacheConfig``. How much the residual (what all blocks together add) grows from each step to the next is known
beforehand: from FLUX.1's published ratios; of other pipes it is measured once in an unaccelerated generation, as
diffusers' ``calibrate`` does. So which steps are skipped follows from parameters, ratios and number of steps.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import GridSize, InvalidParams, Method, PipelineCall, check_integer, points
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.accelerators.decisions import by_step
from pytest_diffaccel.accelerators.diffusers_caches import (
    cache_that_is_on,
    transformer_blocks_of,
    watch_idle,
    why_no_blocks,
    why_no_caches,
)
from pytest_diffaccel.matrix import Cell, Lesson, Params, Point
from pytest_diffaccel.pipes import PipeSpec, denoiser_of, described

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

# Size of each step's residual relative to the one before, of FLUX.1 in 28 steps, as the authors published them and
# diffusers has them (FLUX_MAG_RATIOS); and the class of pipelines that they are of.
_PUBLISHED_OF = "FluxPipeline"
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
# Of measured ratios, as of the published ones.
_DECIMALS = 5
# How much keeping the residual may cost, and skipping all blocks save: more than anything else does.
_FEATURES: Mapping[str, Mapping[str, float]] = {"computed": {"keeping": 0.05}, "skipped": {"skipped": 2.0}}


class MagCache(Method):
    """MagCache through diffusers, with the ratios of FLUX.1, or those measured of another pipe: its lesson."""

    name = "MagCache"
    param_names = ("threshold", "max_skip_steps", "retention_ratio")
    denoiser = "transformer"
    #: Calls of blocks, summed over blocks and steps, in which nothing of them was computed.
    counted = ("skipped_blocks",)
    template = Path(__file__).with_suffix(".py.j2")

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Thresholds x longest skips x shares of steps that are kept, less the points that make the same calls.

        As long as a pipe's ratios are not measured, only what makes the same calls whatever they are is left out.
        """
        return self._distinct(product(_THRESHOLDS[size], _SKIPS[size], _RETENTIONS[size]), cell)

    def space(self, cell: Cell) -> Sequence[Point]:
        """Thresholds from 0.01 to 0.48 x longest skips from 1 to 8 x shares that are kept from 0.05 to 0.5."""
        return self._distinct(product(*_SPACE), cell)

    def _distinct(self, rows: Iterable[Sequence[float]], cell: Cell) -> list[Point]:
        """The points of ``rows`` that may skip anything, less those that make the same calls as an earlier one."""
        tells = _skippable if self.lacks(described(cell.pipe)) else self._skipped
        distinct: dict[tuple[float, ...], Point] = {}
        for point in points(self.param_names, rows):
            if told := tells(point, cell.steps):
                distinct.setdefault(told, point)
        return list(distinct.values())

    def _skipped(self, point: Point, steps: int) -> tuple[float, ...]:
        """The steps that are skipped."""
        return tuple(step for step, computes in enumerate(self._mask(point, steps)) if not computes)

    def _mask(self, point: Point, steps: int) -> tuple[bool, ...]:
        """Whether each step computes."""
        return _mask(point, self._ratios_in(steps))

    def _ratios_in(self, steps: int) -> list[float]:
        return _stretched(self.lesson or _RATIOS, steps)

    def check(self, point: Point, steps: int) -> None:
        """Threshold from 0 to 100, longest skip at least 0, the share of steps that are kept from 0 to 1 (= all)."""
        self.check_names(point)
        for name, high in (("threshold", _HIGHEST_THRESHOLD), ("retention_ratio", 1)):
            value = point[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
                raise InvalidParams(f"{self.name}: {name}={value!r} must be a number from 0 to {high}")
        check_integer(self.name, point, "max_skip_steps", 0)

    def applies_to(self, pipeline: Any) -> str:
        """The pipeline must tell diffusers' caches of calls, and the denoiser have blocks that diffusers knows."""
        return why_no_caches(pipeline) or why_no_blocks(pipeline)

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """A denoiser takes one of diffusers' caches at a time."""
        return cache_that_is_on(pipeline)

    def learns(self, pipe: PipeSpec) -> str:
        """The ratios, unless they are published."""
        return "" if pipe.pipeline_class == _PUBLISHED_OF else "how its residuals grow from step to step"

    def learning(self) -> Ratios:
        """Ratios as diffusers' ``calibrate`` computes them."""
        return Ratios()

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """Every call of a block counts, and the first of its parts to run takes it back."""
        for block in transformer_blocks_of(denoiser):
            yield from watch_idle(block, tally, "skipped_blocks")

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """Where the threshold lets no step go, nothing is skipped."""
        return frozenset({"skipped_blocks"} if self._skipped(point, steps) else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """``computed`` where all blocks run, ``skipped`` where none does."""
        return ["computed" if computes else "skipped" for computes in self._mask(point, steps)]

    def features(self, kind: str) -> Mapping[str, float]:
        """A skipped step costs next to nothing, a computed one a little more than a plain one."""
        return _FEATURES[kind]

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """Share of the steps that are skipped, how early the first is, and how many are skipped on end."""
        mask = self._mask(point, cell.steps)
        longest = max((len(list(run)) for computes, run in groupby(mask) if not computes), default=0)
        begins = mask.index(False) if longest else cell.steps
        return mask.count(False) / cell.steps, 1 - begins / cell.steps, longest / (longest + 1)

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Enable the cache, which knows when a generation ends by its number of steps."""
        from diffusers import MagCacheConfig

        denoiser, point = denoiser_of(pipeline), params[self.name]

        def begin(**options: Any) -> Any:
            steps = options["num_inference_steps"]
            config = MagCacheConfig(**point, num_inference_steps=steps, mag_ratios=self._ratios_in(steps))
            denoiser.enable_cache(config)
            return call(**options)

        return begin


class Ratios:
    """Size of each step's residual relative to the one before, 1 of the first; the mean of a step's calls.

    With guidance by a second call, calls with the prompt and without it are compared among themselves only, and a step
    has one ratio for both, as diffusers takes it.
    """

    def __init__(self) -> None:
        # What each call was for, and its ratio.
        self._calls: list[tuple[str, float]] = []

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Let diffusers calibrate, which computes every step."""
        from diffusers import MagCacheConfig

        denoiser = denoiser_of(pipeline)
        # At its last step it would print what it found.
        denoiser.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=sys.maxsize))
        hook = _tail_hook(denoiser)
        measure: Callable[[Any, Tensor], None] = hook._perform_calibration_step

        def measured(state: Any, residual: Tensor) -> None:
            measure(state, residual)
            self._calls.append((hook.state_manager.context.name, state.calibration_ratios[-1]))

        hook._perform_calibration_step = measured
        yield

    def lesson(self, steps: int) -> Lesson:
        """Of each step, to as many decimals as the published ones have."""
        by_call = by_step(self._calls)
        if len(by_call) != steps:
            raise ValueError(f"the residuals of {len(by_call)} steps were seen, of {steps}")
        ratios = tuple(round(sum(calls) / len(calls), _DECIMALS) for calls in by_call)
        if bad := [ratio for ratio in ratios if not math.isfinite(ratio)]:
            raise ValueError(f"the residuals of a step grow by {bad[0]}, which is no number to go by")
        return ratios


def _tail_hook(denoiser: Any) -> Any:
    """Diffusers' hook on the last block, which measures."""
    from diffusers.hooks.mag_cache import _MAG_CACHE_BLOCK_HOOK

    *_, last = transformer_blocks_of(denoiser)
    return last._diffusers_hook.get_hook(_MAG_CACHE_BLOCK_HOOK)


def _skippable(point: Point, steps: int) -> tuple[float, ...]:
    """What alone decides, beside the ratios, which steps are skipped; nothing where none can be, whatever those are."""
    # The first step computes, kept or not.
    skippable = steps - max(_kept(point, steps), 1)
    longest = min(point["max_skip_steps"], skippable)
    return (point["threshold"], longest, skippable) if longest > 0 else ()


def _kept(point: Point, steps: int) -> int:
    """The first steps, which all compute."""
    return int(point["retention_ratio"] * steps + 0.5)


def _mask(point: Point, ratios: Sequence[float]) -> tuple[bool, ...]:
    """Whether each step computes, as diffusers' hook decides, which counts in single precision."""
    kept, threshold = _kept(point, len(ratios)), _single(point["threshold"])
    mask, ratio, error, skipped = [], 1.0, 0.0, 0
    for step, scale in enumerate(ratios):
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


def _stretched(ratios: Sequence[float], steps: int) -> list[float]:
    """As diffusers takes those of another number of steps, and so a script."""
    if len(ratios) == steps:
        return list(ratios)
    if steps == 1:
        return [ratios[-1]]
    scale = _single((len(ratios) - 1) / (steps - 1))
    return [ratios[round(_single(step * scale))] for step in range(steps)]


def _single(value: float) -> float:
    """The nearest number of single precision."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)
