"""TaylorSeer: attention is computed every few steps, and what it gives in between is predicted by a Taylor series.

Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", ICCV 2025, through diffusers'
``TaylorSeerCacheConfig``, which predicts what the attention of every transformer block gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import GridSize, Method, PipelineCall, check_integer, points
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.accelerators.diffusers_caches import cache_that_is_on, watch_idle, why_no_caches
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_INTERVALS: Mapping[GridSize, tuple[int, ...]] = {
    "full": (2, 3, 4, 5, 6, 7),
    "pair": (2, 3, 5),
    "triple": (2, 4),
    "coarse": (2, 3, 5),
    "coarse pair": (2, 4),
    "coarse triple": (2, 4),
}
_BEFORE: Mapping[GridSize, tuple[int, ...]] = {
    "full": (3, 5, 8, 10),
    "pair": (3, 8),
    "triple": (3,),
    "coarse": (3, 8),
    "coarse pair": (3,),
    "coarse triple": (3,),
}
_ORDERS: Mapping[GridSize, tuple[int, ...]] = {
    "full": (1, 2),
    "pair": (1,),
    "triple": (1,),
    "coarse": (1,),
    "coarse pair": (1,),
    "coarse triple": (1,),
}
# Of the whole space. Order 0 keeps the last output as it is.
_SPACE = (range(2, 11), range(1, 13), range(3))
_HIGHEST_ORDER = max(_SPACE[2])
# How much keeping terms may cost, predicting may save, and each term may cost in either.
_KEEPING, _PREDICTING, _TERM = 0.1, 0.5, 0.05


class TaylorSeer(Method):
    """TaylorSeer through diffusers, with its terms in single precision."""

    name = "TaylorSeer"
    param_names = ("cache_interval", "disable_cache_before_step", "max_order")
    denoiser = "transformer"
    #: Calls of attention, summed over blocks and steps, in which nothing of it was computed.
    counted = ("predicted_attention",)
    template = Path(__file__).with_suffix(".py.j2")

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Intervals x first steps x orders, less the points that make the same calls."""
        return self._distinct(product(_INTERVALS[size], _BEFORE[size], _ORDERS[size]), cell.steps)

    def space(self, cell: Cell) -> Sequence[Point]:
        """Intervals from 2 to 10 x the first step to predict at from 1 to 12 x orders from 0 to 2."""
        return self._distinct(product(*_SPACE), cell.steps)

    def _distinct(self, rows: Iterable[Sequence[int]], steps: int) -> list[Point]:
        """The points of ``rows`` that predict anything, less those that make the same calls as an earlier one."""
        distinct: dict[tuple[str, ...], Point] = {}
        for point in points(self.param_names, rows):
            if self.counters(point, steps):
                distinct.setdefault(tuple(self.kinds(point, steps, frozenset())), point)
        return list(distinct.values())

    def check(self, point: Point, steps: int) -> None:
        """Interval and first step at least 1: nothing can be predicted before anything was computed. Order from 0."""
        self.check_names(point)
        check_integer(self.name, point, "cache_interval", 1)
        check_integer(self.name, point, "disable_cache_before_step", 1)
        check_integer(self.name, point, "max_order", 0)

    def applies_to(self, pipeline: Any) -> str:
        """There must be attention that diffusers can predict, and the pipeline must tell it of calls."""
        if reason := why_no_caches(pipeline):
            return reason
        denoiser = denoiser_of(pipeline)
        if not list(_predictable(denoiser)):
            return f"diffusers finds no attention in a {type(denoiser).__name__} that TaylorSeer could predict"
        return ""

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """A denoiser takes one of diffusers' caches at a time."""
        return cache_that_is_on(pipeline)

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """Every call of an attention counts, and the first of its parts to run takes it back."""
        for attention in _predictable(denoiser):
            yield from watch_idle(attention, tally, "predicted_attention")

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """Interval 1, and a first step behind the last, compute every step in full."""
        predicts = any(not self._computes(point, step) for step in range(steps))
        return frozenset({"predicted_attention"} if predicts else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """``computed@order`` where the terms are renewed, ``predicted@order`` where they are used."""
        names = {True: f"computed@{point['max_order']}", False: f"predicted@{point['max_order']}"}
        return [names[self._computes(point, step)] for step in range(steps)]

    @staticmethod
    def _computes(point: Point, step: int) -> bool:
        # As diffusers' hook decides: the step after the first that may be predicted is computed.
        before = point["disable_cache_before_step"]
        return step < before or (step - before - 1) % point["cache_interval"] == 0

    def features(self, kind: str) -> Mapping[str, float]:
        """Predicting saves about the same whatever the order; each term costs a little, more where it is renewed."""
        name, _, order = kind.partition("@")
        share = _KEEPING if name == "computed" else _PREDICTING
        return {name: share, f"term {name}": _TERM * int(order)}

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """Share of the steps that are predicted, how early that begins, and how few terms are kept."""
        predicted = sum(not self._computes(point, step) for step in range(cell.steps))
        begins = min(1.0, point["disable_cache_before_step"] / cell.steps)
        lacking = max(0, _HIGHEST_ORDER - point["max_order"])
        return predicted / cell.steps, 1 - begins, 0.3 * lacking

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Enable the cache; what it keeps lives as long as this application."""
        import torch
        from diffusers import TaylorSeerCacheConfig

        config = TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **params[self.name])
        denoiser_of(pipeline).enable_cache(config)
        return call


def _predictable(denoiser: Any) -> Iterator[Any]:
    """The modules that diffusers puts the cache on where it is told nothing, by the names that it goes by."""
    from diffusers.hooks.taylorseer_cache import _TRANSFORMER_BLOCK_IDENTIFIERS

    for name, module in denoiser.named_modules():
        if any(re.fullmatch(pattern, name) for pattern in _TRANSFORMER_BLOCK_IDENTIFIERS):
            yield module
