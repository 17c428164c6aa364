"""FirstBlockCache: where the first block's residual is near that of the last computed step, its other blocks rest.

Of the ParaAttention project (Cheng 2024, github.com/chengzeyi/ParaAttention, "First Block Cache"), after TeaCache (Liu
et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", CVPR 2025), through diffusers'
``FirstBlockCacheConfig``. A *residual* is what blocks add to their input. Each call computes the first block; where its
residual is at most ``threshold`` away from that of the last call that computed all (the mean absolute difference over
the whole batch, as a share of the mean absolute residual there), what the other blocks added then is added again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.accelerators.base import (
    COMPUTED,
    HALF_REUSED,
    REUSED,
    GridSize,
    InvalidParams,
    Method,
    PipelineCall,
    points,
)
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.accelerators.decisions import foreseen, recorded, uncompiled
from pytest_diffaccel.accelerators.diffusers_caches import (
    cache_that_is_on,
    transformer_blocks_of,
    watch_idle,
    why_no_caches,
)
from pytest_diffaccel.matrix import Cell, Params, Point
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

_THRESHOLDS: Mapping[GridSize, tuple[float, ...]] = {
    "full": (0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3),
    "pair": (0.05, 0.1, 0.2),
    "triple": (0.1,),
    "coarse": (0.05, 0.1, 0.2),
    "coarse pair": (0.1,),
    "coarse triple": (0.1,),
}
# Of the whole space: each an eighth above the one before, from 0.01 to 1.
_SPACE = tuple(round(0.01 * 1.125**power, 4) for power in range(40))
# Above any distance between residuals that mean anything.
_HIGHEST_THRESHOLD = 100
# Where half of what a threshold does is done, about: for its order only.
_MIDDLE = 0.15


class FirstBlockCache(Method):
    """FirstBlockCache through diffusers."""

    name = "FirstBlockCache"
    param_names = ("threshold",)
    denoiser = "transformer"
    #: Denoiser calls in which the last block was not computed.
    counted = ("reused_calls",)
    template = Path(__file__).with_suffix(".py.j2")
    extremes = ({"threshold": 0}, {"threshold": _HIGHEST_THRESHOLD})

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Thresholds; which of them decide alike is not known before something was drawn."""
        return points(self.param_names, [(threshold,) for threshold in _THRESHOLDS[size]])

    def space(self, cell: Cell) -> Sequence[Point]:
        """Thresholds from 0.01 to 1."""
        return points(self.param_names, [(threshold,) for threshold in sorted({*_SPACE, *_THRESHOLDS["full"]})])

    def check(self, point: Point, steps: int) -> None:
        """Threshold from 0 (nothing is reused) to 100."""
        self.check_names(point)
        value = point["threshold"]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _HIGHEST_THRESHOLD:
            raise InvalidParams(f"{self.name}: threshold={value!r} must be a number from 0 to {_HIGHEST_THRESHOLD}")

    def applies_to(self, pipeline: Any) -> str:
        """The pipeline must tell diffusers' caches of calls, and the denoiser have blocks that diffusers knows."""
        if reason := why_no_caches(pipeline):
            return reason
        blocks = list(transformer_blocks_of(denoiser_of(pipeline)))
        if len(blocks) < 2:
            return f"a {type(denoiser_of(pipeline)).__name__} of {len(blocks)} blocks has none after the first to save"
        return ""

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """A denoiser takes one of diffusers' caches at a time."""
        return cache_that_is_on(pipeline)

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """Every call of the last block counts, and the first of its parts to run takes it back."""
        *_, last = transformer_blocks_of(denoiser)
        yield from watch_idle(last, tally, "reused_calls")

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """At threshold 0 nothing is reused, and in one step there is nothing to reuse."""
        return frozenset({"reused_calls"} if point["threshold"] and steps > 1 else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """As if all steps after the first were reused; which are, the pictures decide."""
        return [COMPUTED] + [REUSED if point["threshold"] else COMPUTED] * (steps - 1)

    def features(self, kind: str) -> Mapping[str, float]:
        """Reusing saves all blocks but one; computing costs a little more than a plain step."""
        return _FEATURES[kind]

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """How much the threshold lets through; a search that has foreseen its decisions takes their share instead."""
        return (point["threshold"] / (point["threshold"] + _MIDDLE),)

    def decisions(self, denoiser: Any) -> Callable[[], Sequence[Sequence[bool]]]:
        """What the cache's hook on the first block decides."""
        hook = _head_hook(denoiser)

        def told(computes: bool) -> tuple[str, bool]:
            return hook.state_manager.context.name, not computes

        return recorded(hook, "_should_compute_remaining_blocks", told)

    def foresight(self) -> Distances:
        """Decisions by the residuals of unaccelerated calls, of which accelerated ones differ little."""
        return Distances()

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Enable the cache; what it keeps lives as long as this application."""
        from diffusers import FirstBlockCacheConfig

        denoiser_of(pipeline).enable_cache(FirstBlockCacheConfig(**params[self.name]))
        return call


class Distances:
    """How far the first block's residual of each call lies from those before it, by what the call is for.

    With guidance by a second call, calls with the prompt and without it are compared among themselves only.
    """

    def __init__(self) -> None:
        # What each call was for, and its distance to each earlier one of the same purpose.
        self._calls: list[tuple[str, list[float]]] = []

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Keep the residuals of a generation, and how far they lie apart."""
        hook = _head_hook(denoiser_of(pipeline))
        decide = hook._should_compute_remaining_blocks
        kept: dict[str, list[tuple[Tensor, Tensor]]] = {}

        def measured(residual: Tensor) -> bool:
            purpose = hook.state_manager.context.name
            earlier = kept.setdefault(purpose, [])
            # As the hook computes it, in the residuals' own type.
            apart = [((residual - other).abs().mean() / size).item() for other, size in earlier]
            self._calls.append((purpose, apart))
            earlier.append((residual, residual.abs().mean()))
            computes: bool = decide(residual)
            return computes

        hook._should_compute_remaining_blocks = uncompiled(measured)
        yield

    def decisions(self, point: Point) -> Sequence[Sequence[bool]]:
        """A call would reuse where its distance to the last that computes is at most the threshold."""
        return foreseen(self._calls, lambda apart, last: apart[last] <= point["threshold"])


# How much keeping residuals may cost, and reusing them save: more than anything else does.
_FEATURES: Mapping[str, Mapping[str, float]] = {
    COMPUTED: {"keeping": 0.05},
    HALF_REUSED: {"half": 1.0},
    REUSED: {"reused": 2.0},
}


def _head_hook(denoiser: Any) -> Any:
    """Diffusers' hook on the first block, which decides."""
    from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

    return next(iter(transformer_blocks_of(denoiser)))._diffusers_hook.get_hook(_FBC_LEADER_BLOCK_HOOK)
