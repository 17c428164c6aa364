"""DBCache: where the residual of the first blocks is near that of the last computed step, all other blocks rest.

"Dual Block Cache" of cache-dit (DefTruth and others, github.com/vipshop/cache-dit), after FirstBlockCache. A *residual*
is what blocks add to their input. The rule is that of cache-dit 1.5.3, ``CachedContextManager.can_cache`` and
``CachedBlocks_Pattern_Base.forward``. Each call computes the first ``Fn_compute_blocks`` blocks. It reuses what the
others added in the last computed call of its kind when

- ``max_warmup_steps`` steps lie behind it,
- fewer than ``max_continuous_cached_steps`` calls before it, one after the other, reused (-1: however many), and
- the mean absolute difference of the first blocks' residual from that of the last computed call, over the whole batch
  and as a share of the mean absolute residual there, is below ``residual_diff_threshold`` (from 1 on, whatever it is).

With one of cache-dit's masks (``steps_mask`` from 1 to 4, :mod:`.dbcache_steps`) the mask says which steps reuse, and
nothing else does. With ``taylorseer_order`` 1 what is added is not what was added then, but predicted from the last
computed calls by a Taylor series of that order (TaylorSeer, which cache-dit calls a calibrator). Where guidance is a
second call of the denoiser, calls with the prompt and without it are counted and compared among themselves.

cache-dit changes the pipeline's class, the pipeline, the denoiser and the order of its modules, and ``disable_cache``
leaves some of that. So all of it is put back here: the class at once, the others with everything that a method changes
(:mod:`.restoration`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain, product
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
    check_integer,
    points,
)
from pytest_diffaccel.accelerators.block_distances import FIRST_BLOCKS, BlockDistances
from pytest_diffaccel.accelerators.cache_dit_patches import adapter_of, class_restored, part_from, purpose_of, silent
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.accelerators.dbcache_steps import (
    BESIDE_A_MASK,
    MASK_POLICIES,
    computed_first,
    has_masks,
    reusable,
    steps_mask,
)
from pytest_diffaccel.accelerators.decisions import recorded
from pytest_diffaccel.accelerators.diffusers_caches import cache_that_is_on, transformer_blocks_of
from pytest_diffaccel.matrix import Cell, Number, Params, Point
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_PARAMS = (
    *("Fn_compute_blocks", "max_warmup_steps", "max_continuous_cached_steps", "residual_diff_threshold"),
    *("taylorseer_order", "steps_mask"),
)
# In their order.
_Values = tuple[Sequence[Number], ...]
_ORDERS, _NO_MASK = (0, 1), (0,)
# More than any scheduler has; cache-dit takes no number beyond those of the machine.
_MOST_STEPS = 1000
_MASKS = range(1, len(MASK_POLICIES) + 1)
_FULL: _Values = (FIRST_BLOCKS, (4, 8), (1, 2, 3, 4, 6), (0.04, 0.08, 0.12, 0.16, 0.24, 0.32), _ORDERS, _NO_MASK)
_COARSE: _Values = ((1, 4), (4,), (3,), (0.08, 0.16, 0.32), _ORDERS, _NO_MASK)
_GRIDS: Mapping[GridSize, _Values] = {
    "full": _FULL,
    "pair": _COARSE,
    "triple": _COARSE,
    "coarse": _COARSE,
    "coarse pair": _COARSE,
    "coarse triple": _COARSE,
}
_THRESHOLDS = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.32, 0.48)
_SPACE: _Values = (FIRST_BLOCKS, (2, 4, 6, 8), (1, 2, 3, 4, 6, 8), _THRESHOLDS, _ORDERS, _NO_MASK)
_MASKED: _Values = (FIRST_BLOCKS, *((value,) for value in BESIDE_A_MASK.values()), _ORDERS, _MASKS)
# As many reused steps on end as there are.
_NO_LIMIT = -1
# A series is of order 1 only after the third step.
_SOON: Point = {
    "max_warmup_steps": 4,
    "max_continuous_cached_steps": _NO_LIMIT,
    "residual_diff_threshold": 1,
    "steps_mask": 0,
}
# Where half of what a threshold does is done, about: for its order only.
_MIDDLE = 0.15
_INSTALL = "pip install 'pytest-diffaccel[cache-dit]'"


class DBCache(Method):
    """DBCache through cache-dit, an optional dependency."""

    name = "DBCache"
    param_names = _PARAMS
    denoiser = "transformer"
    #: Denoiser calls that did not come to the last block.
    counted = ("cached_calls",)
    template = Path(__file__).with_suffix(".py.j2")
    extremes = (
        dict(zip(_PARAMS, (1, 4, 0, 0, 0, 0), strict=True)),
        *(
            {**dict.fromkeys(_PARAMS, 0), **_SOON, "Fn_compute_blocks": blocks, "taylorseer_order": order}
            for blocks, order in product(FIRST_BLOCKS, _ORDERS)
        ),
    )

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """All parameters but masks; which points decide alike is not known before something was drawn."""
        return self._distinct(points(self.param_names, product(*_GRIDS[size])), cell.steps)

    def space(self, cell: Cell) -> Sequence[Point]:
        """Warm-ups from 2 to 8 steps, up to 8 reused steps on end, thresholds from 0.02 to 0.48; each mask."""
        masked = product(*_MASKED) if has_masks(cell.steps) else ()
        return self._distinct(points(self.param_names, sorted(chain(product(*_SPACE), masked))), cell.steps)

    def _distinct(self, rows: Iterable[Point], steps: int) -> list[Point]:
        """The points that may reuse anything, less those that so few steps make another's."""
        distinct: dict[tuple[Any, ...], Point] = {}
        for point in rows:
            kinds = self.kinds(point, steps, frozenset())
            if self.counters(point, steps):
                distinct.setdefault((*kinds, point["residual_diff_threshold"]), point)
        return list(distinct.values())

    def check(self, point: Point, steps: int) -> None:
        """First blocks from 1, warm-up from 0, a limit from -1; threshold from 0 (nothing is reused) to 1 (everything).

        A mask (1 to 4; 0: none) must be one of so many steps, and stands alone: what it makes meaningless is fixed.
        """
        self.check_names(point)
        check_integer(self.name, point, "Fn_compute_blocks", 1)
        check_integer(self.name, point, "max_warmup_steps", 0, _MOST_STEPS)
        check_integer(self.name, point, "max_continuous_cached_steps", _NO_LIMIT, _MOST_STEPS)
        check_integer(self.name, point, "taylorseer_order", min(_ORDERS), max(_ORDERS))
        value = point["residual_diff_threshold"]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InvalidParams(f"{self.name}: residual_diff_threshold={value!r} must be a number from 0 to 1")
        if number := check_integer(self.name, point, "steps_mask", 0, max(_MASKS)):
            self._check_mask(number, point, steps)

    def _check_mask(self, number: int, point: Point, steps: int) -> None:
        if not has_masks(steps):
            raise InvalidParams(
                f"{self.name}: steps_mask={number} is none of {steps} steps: cache-dit has masks of 4, of 6, and from "
                "8 steps on; take 0"
            )
        for name, value in BESIDE_A_MASK.items():
            if point[name] != value:
                raise InvalidParams(
                    f"{self.name}: {name}={point[name]!r} must be {value} with steps_mask={number}, which alone says "
                    "what is reused"
                )

    def applies_to(self, pipeline: Any) -> str:
        """cache-dit must be installed, know the pipeline's class, and decide once for all of its blocks."""
        if find_spec("cache_dit") is None:
            return f"cache-dit is not installed ({_INSTALL})"
        adapter = adapter_of(pipeline)
        kind = type(pipeline).__name__
        if adapter is None:
            return f"cache-dit knows no {kind}"
        import torch

        if adapter.transformer is not denoiser_of(pipeline) or not isinstance(adapter.blocks, torch.nn.ModuleList):
            return f"in a {kind} cache-dit decides for some blocks apart from others"
        if len(adapter.blocks) < 2:
            return f"a {type(adapter.transformer).__name__} of one block has none after the first to save"
        if list(transformer_blocks_of(adapter.transformer))[-1:] != [adapter.blocks[-1]]:
            return f"which block of a {type(adapter.transformer).__name__} is the last is not known"
        return ""

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """There must be blocks after the first ones, and no cache yet."""
        if reason := cache_that_is_on(pipeline):
            return reason
        denoiser = denoiser_of(pipeline)
        if hasattr(denoiser, "_context_manager"):
            return "cache-dit is on already; call `cache_dit.disable_cache` with the pipeline"
        number = len(adapter_of(pipeline).blocks)
        if (first := point["Fn_compute_blocks"]) >= number:
            kind = type(denoiser).__name__
            return f"Fn_compute_blocks={first} leaves none of this {kind}'s {number} blocks to save; take less"
        return ""

    def watch(self, denoiser: Any, tally: Tally) -> Iterator[RemovableHandle]:
        """Every call of the denoiser counts, and that of its last block takes it back."""
        *_, last = transformer_blocks_of(denoiser)
        yield denoiser.register_forward_pre_hook(lambda _module, _args: tally.add("cached_calls"))
        yield last.register_forward_pre_hook(lambda _module, _args: tally.add("cached_calls", -1))

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """Nothing is reused at threshold 0, without a step that may, and where the warm-up never ends."""
        return frozenset({"cached_calls"} if any(reusable(point, steps)) else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """As if every step were reused that may be; which are, the pictures decide, or a mask does."""
        return [self.decided_kind(point, REUSED if may else COMPUTED) for may in reusable(point, steps)]

    def decides(self, point: Point) -> bool:
        """Not with a mask."""
        return super().decides(point) and not point["steps_mask"]

    def decided_kind(self, point: Point, kind: str) -> str:
        """``computed@order``; ``reused@order@blocks``, where the first blocks are computed."""
        if kind == COMPUTED:
            return f"{kind}@{point['taylorseer_order']}"
        return f"{kind}@{point['taylorseer_order']}@{point['Fn_compute_blocks']}"

    def features(self, kind: str) -> Mapping[str, float]:
        """Reusing saves all but the first blocks; a term costs a little, more where it is renewed."""
        name, order, *blocks = kind.split("@")
        features = {name: _FEATURES[name], f"term {name}": _TERM * int(order)}
        return features | {f"blocks {name}": math.log2(int(number)) / 2 for number in blocks}

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """What the threshold lets through, and :meth:`decided_coordinates` of as many steps as may be reused."""
        let_through = point["residual_diff_threshold"] / (point["residual_diff_threshold"] + _MIDDLE)
        share = sum(reusable(point, cell.steps)) / cell.steps
        return (let_through, *self.decided_coordinates(point, cell, share))

    def decided_coordinates(self, point: Point, cell: Cell, share: float) -> tuple[float, ...]:
        """The share; of that, how early it begins, how few blocks are computed, and what is not predicted."""
        early = 1 - min(1.0, computed_first(point, cell.steps) / cell.steps)
        few = 1 - min(1.0, math.log2(point["Fn_compute_blocks"]) / 4)
        return share, share * early, share * few, 0.3 * share * (point["taylorseer_order"] == 0)

    def decisions(self, denoiser: Any) -> Callable[[], Sequence[Sequence[bool]]]:
        """What cache-dit's context decides."""
        manager = denoiser._context_manager
        return recorded(manager, "can_cache", lambda reuses: (purpose_of(manager), reuses))

    def foresight(self) -> BlockDistances:
        """Decisions by the residuals of unaccelerated calls, of which accelerated ones differ little."""
        return BlockDistances()

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Enable the cache; what it keeps lives as long as this application."""
        import cache_dit

        settings = dict(params[self.name])
        order, number = settings.pop("taylorseer_order"), int(settings.pop("steps_mask"))
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        with class_restored(type(pipeline)), silent():
            config = cache_dit.DBCacheConfig(**settings)
            cache_dit.enable_cache(pipeline, cache_config=config, calibrator_config=calibrator)
            cached = type(pipeline).__call__
        part_from(denoiser_of(pipeline))
        # The one that is in force: cache-dit copies what it is given.
        in_force = denoiser_of(pipeline)._context_kwargs["cache_config"]

        def generate(*args: Any, **options: Any) -> Any:
            scale = options.get("true_cfg_scale", options.get("guidance_scale"))
            if scale is not None and scale <= 1:
                # cache-dit takes every other call for one without the prompt, which there is none of then.
                in_force.enable_separate_cfg = False
            if number:
                in_force.steps_computation_mask = list(steps_mask(number, options["num_inference_steps"]))
                in_force.steps_computation_policy = "static"
            return cached(pipeline, *args, **options)

        return generate


# How much keeping residuals may cost, and reusing them save, more than anything else does; and each term of a series.
_FEATURES: Mapping[str, float] = {COMPUTED: 0.05, HALF_REUSED: 1.0, REUSED: 2.0}
_TERM = 0.05
