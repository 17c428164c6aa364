"""DBCache: where the residual of the first blocks is near that of the last computed step, all other blocks rest.

"Dual Block Cache" of cache-dit (DefTruth and others, github.com/vipshop/cache-dit), after FirstBlockCache. A *residual*
is what blocks add to their input. The rule is that of cache-dit 1.5.3, ``CachedContextManager.can_cache`` and
``CachedBlocks_Pattern_Base.forward``. Each call computes the first ``Fn_compute_blocks`` blocks. It reuses what the
others added in the last computed call of its kind when

- ``max_warmup_steps`` steps lie behind it,
- fewer than ``max_continuous_cached_steps`` calls before it, one after the other, reused (-1: however many), and
- the mean absolute difference of the first blocks' residual from that of the last computed call, over the whole batch
  and as a share of the mean absolute residual there, is below ``residual_diff_threshold`` (from 1 on, whatever it is).

With ``taylorseer_order`` 1 what is added is not what was added then, but predicted from the last computed calls by a
Taylor series of that order (TaylorSeer, which cache-dit calls a calibrator). Where guidance is a second call of the
denoiser, calls with the prompt and without it are counted and compared among themselves.

cache-dit changes the pipeline's class, the pipeline, the denoiser and the order of its modules, and ``disable_cache``
leaves some of that. So all of it is put back here: the class at once, the others with everything that a method changes
(:mod:`.restoration`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from inspect import getclosurevars
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
from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.accelerators.diffusers_caches import cache_that_is_on, transformer_blocks_of
from pytest_diffaccel.accelerators.first_block_cache import by_step, uncompiled
from pytest_diffaccel.matrix import Cell, Number, Params, Point
from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

_PARAMS = (
    *("Fn_compute_blocks", "max_warmup_steps", "max_continuous_cached_steps", "residual_diff_threshold"),
    "taylorseer_order",
)
# In their order.
_Values = tuple[Sequence[Number], ...]
_FIRST_BLOCKS, _ORDERS = (1, 4, 8), (0, 1)
_FULL: _Values = (_FIRST_BLOCKS, (4, 8), (1, 2, 3, 4, 6), (0.04, 0.08, 0.12, 0.16, 0.24, 0.32), _ORDERS)
_COARSE: _Values = ((1, 4), (4,), (3,), (0.08, 0.16, 0.32), _ORDERS)
_GRIDS: Mapping[GridSize, _Values] = {
    "full": _FULL,
    "pair": _COARSE,
    "triple": _COARSE,
    "coarse": _COARSE,
    "coarse pair": _COARSE,
    "coarse triple": _COARSE,
}
_THRESHOLDS = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.32, 0.48)
_SPACE: _Values = (_FIRST_BLOCKS, (2, 4, 6, 8), (1, 2, 3, 4, 6, 8), _THRESHOLDS, _ORDERS)
# As many reused steps on end as there are.
_NO_LIMIT = -1
# A series is of order 1 only after the third step.
_SOON = {"max_warmup_steps": 4, "max_continuous_cached_steps": _NO_LIMIT, "residual_diff_threshold": 1}
# Where half of what a threshold does is done, about: for its order only.
_MIDDLE = 0.15
_INSTALL = "pip install 'pytest-diffaccel[cache-dit]'"
# Of cache-dit's loggers, whose handler writes to standard output, which is the session's.
_ITS_LOGGER = "CACHE_DIT"


class DBCache(Method):
    """DBCache through cache-dit, an optional dependency."""

    name = "DBCache"
    param_names = _PARAMS
    denoiser = "transformer"
    #: Denoiser calls that did not come to the last block.
    counted = ("cached_calls",)
    template = Path(__file__).with_suffix(".py.j2")
    extremes = (
        dict(zip(_PARAMS, (1, 4, 0, 0, 0), strict=True)),
        *(
            {"Fn_compute_blocks": blocks, **_SOON, "taylorseer_order": order}
            for blocks, order in product(_FIRST_BLOCKS, _ORDERS)
        ),
    )

    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """All five parameters; which points decide alike is not known before something was drawn."""
        return self._distinct(_GRIDS[size], cell.steps)

    def space(self, cell: Cell) -> Sequence[Point]:
        """Warm-ups from 2 to 8 steps, up to 8 reused steps on end, thresholds from 0.02 to 0.48."""
        return self._distinct(_SPACE, cell.steps)

    def _distinct(self, values: _Values, steps: int) -> list[Point]:
        """The points that may reuse anything, less those that so few steps make another's."""
        distinct: dict[tuple[Any, ...], Point] = {}
        for point in points(self.param_names, product(*values)):
            kinds = self.kinds(point, steps, frozenset())
            if self.counters(point, steps):
                distinct.setdefault((*kinds, point["residual_diff_threshold"]), point)
        return list(distinct.values())

    def check(self, point: Point, steps: int) -> None:
        """First blocks from 1, warm-up from 0, a limit from -1, threshold from 0 (nothing) to 1 (whatever it is)."""
        self.check_names(point)
        check_integer(self.name, point, "Fn_compute_blocks", 1)
        check_integer(self.name, point, "max_warmup_steps", 0)
        check_integer(self.name, point, "max_continuous_cached_steps", _NO_LIMIT)
        check_integer(self.name, point, "taylorseer_order", min(_ORDERS), max(_ORDERS))
        value = point["residual_diff_threshold"]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InvalidParams(f"{self.name}: residual_diff_threshold={value!r} must be a number from 0 to 1")

    def applies_to(self, pipeline: Any) -> str:
        """cache-dit must be installed, know the pipeline's class, and decide once for all of its blocks."""
        if find_spec("cache_dit") is None:
            return f"cache-dit is not installed ({_INSTALL})"
        adapter = _adapter(pipeline)
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
        number = len(_adapter(pipeline).blocks)
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
        return frozenset({"cached_calls"} if any(_reusable(point, steps)) else ())

    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """As if every step were reused that may be; which are, the pictures decide."""
        return [self.decided_kind(point, REUSED if may else COMPUTED) for may in _reusable(point, steps)]

    def decided_kind(self, point: Point, kind: str) -> str:
        """``computed@order``; ``reused@order@blocks``, where the first blocks are computed."""
        if kind == COMPUTED:
            return f"{kind}@{point['taylorseer_order']}"
        return f"{kind}@{point['taylorseer_order']}@{point['Fn_compute_blocks']}"

    def soonest(self, point: Point) -> Point:
        """The same first blocks and order."""
        return {**point, **_SOON}

    def features(self, kind: str) -> Mapping[str, float]:
        """Reusing saves all but the first blocks; a term costs a little, more where it is renewed."""
        name, order, *blocks = kind.split("@")
        features = {name: _FEATURES[name], f"term {name}": _TERM * int(order)}
        return features | {f"blocks {name}": math.log2(int(number)) / 2 for number in blocks}

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """What the threshold lets through, and :meth:`decided_coordinates` of as many steps as may be reused."""
        let_through = point["residual_diff_threshold"] / (point["residual_diff_threshold"] + _MIDDLE)
        share = sum(_reusable(point, cell.steps)) / cell.steps
        return (let_through, *self.decided_coordinates(point, cell, share))

    def decided_coordinates(self, point: Point, cell: Cell, share: float) -> tuple[float, ...]:
        """The share; of that, how early it begins, how few blocks are computed, and what is not predicted."""
        early = 1 - min(1.0, point["max_warmup_steps"] / cell.steps)
        few = 1 - min(1.0, math.log2(point["Fn_compute_blocks"]) / 4)
        return share, share * early, share * few, 0.3 * share * (point["taylorseer_order"] == 0)

    def decisions(self, denoiser: Any) -> Callable[[], Sequence[Sequence[bool]]]:
        """What cache-dit's context decides."""
        made: list[tuple[str, bool]] = []
        manager = denoiser._context_manager
        decide = manager.can_cache

        @wraps(decide)
        def recorded(residual: Tensor, **options: Any) -> bool:
            reuses: bool = decide(residual, **options)
            made.append((_purpose(manager), reuses))
            return reuses

        manager.can_cache = uncompiled(recorded)
        return lambda: by_step(made)

    def foresight(self) -> BlockDistances:
        """Decisions by the residuals of unaccelerated calls, of which accelerated ones differ little."""
        return BlockDistances()

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Enable the cache; what it keeps lives as long as this application."""
        import cache_dit

        settings = dict(params[self.name])
        order = settings.pop("taylorseer_order")
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        with _class_restored(type(pipeline)), _silent():
            config = cache_dit.DBCacheConfig(**settings)
            cache_dit.enable_cache(pipeline, cache_config=config, calibrator_config=calibrator)
            cached = type(pipeline).__call__
        _part_from(denoiser_of(pipeline))
        # The one that is in force: cache-dit copies what it is given.
        in_force = denoiser_of(pipeline)._context_kwargs["cache_config"]

        def generate(*args: Any, **options: Any) -> Any:
            scale = options.get("true_cfg_scale", options.get("guidance_scale"))
            if scale is not None and scale <= 1:
                # cache-dit takes every other call for one without the prompt, which there is none of then.
                in_force.enable_separate_cfg = False
            return cached(pipeline, *args, **options)

        return generate


# How much keeping residuals may cost, and reusing them save, more than anything else does; and each term of a series.
_FEATURES: Mapping[str, float] = {COMPUTED: 0.05, HALF_REUSED: 1.0, REUSED: 2.0}
_TERM = 0.05


class BlockDistances:
    """How far the first blocks' residual of each call lies from those before it, by what the call is for.

    Kept for each of several numbers of first blocks; another number is taken for the nearest of them.
    """

    def __init__(self) -> None:
        # What each call was for, and by number of blocks its distance to each earlier one of the same purpose.
        self._calls: list[tuple[str, dict[int, list[float]]]] = []
        # Of a search's thousands of points many are asked for again and again; the order decides nothing.
        self._decided: dict[tuple[Number, ...], Sequence[Sequence[bool]]] = {}

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:
        """Keep the residuals of a generation, and how far they lie apart. Compiled blocks run uncompiled in it."""
        import torch

        denoiser, adapter = denoiser_of(pipeline), _adapter(pipeline)
        manager, place = denoiser._context_manager, adapter.forward_pattern.Out.index("hidden_states")
        states: dict[int, Tensor] = {}
        kept: dict[str, list[dict[int, tuple[Tensor, Tensor]]]] = {}

        def keep(number: int, output: Any) -> None:
            states[number] = output if isinstance(output, torch.Tensor) else output[place]

        def end(*_: Any) -> None:
            purpose, before = _purpose(manager), states.pop(0)
            earlier = kept.setdefault(purpose, [])
            residuals = {number: state - before.to(state.device) for number, state in states.items()}
            # As cache-dit computes it, in the residuals' own type.
            apart = {
                number: [((one[number][0] - residual).abs().mean() / one[number][1]).item() for one in earlier]
                for number, residual in residuals.items()
            }
            self._calls.append((purpose, apart))
            earlier.append({number: (residual, residual.abs().mean()) for number, residual in residuals.items()})
            states.clear()

        adapter.blocks[0].register_forward_pre_hook(lambda _module, args: keep(0, args[0]))
        for number in _FIRST_BLOCKS:
            if number < len(adapter.blocks):
                adapter.blocks[number - 1].register_forward_hook(
                    lambda _module, _args, output, number=number: keep(number, output)
                )
        denoiser.register_forward_hook(end)
        with torch.compiler.set_stance("force_eager"):
            yield

    def decisions(self, point: Point) -> Sequence[Sequence[bool]]:
        """What cache-dit would decide, were the residuals these."""
        key = tuple(point[name] for name in _PARAMS if name != "taylorseer_order")
        if key not in self._decided:
            self._decided[key] = self._decisions(point)
        return self._decided[key]

    def _decisions(self, point: Point) -> Sequence[Sequence[bool]]:
        last: dict[str, int] = {}
        reused, made = dict.fromkeys((purpose for purpose, _ in self._calls), 0), []
        for purpose, apart in self._calls:
            first = min(apart, key=lambda number: abs(number - point["Fn_compute_blocks"]))
            step = len(apart[first])
            may = purpose in last and _may_reuse(point, step, reused[purpose])
            reuses = may and (_is_any_near(point) or apart[first][last[purpose]] < point["residual_diff_threshold"])
            reused[purpose] = reused[purpose] + 1 if reuses else 0
            if not reuses:
                last[purpose] = step
            made.append((purpose, reuses))
        return by_step(made)


def _reusable(point: Point, steps: int) -> list[bool]:
    """Whether each step is reused where every residual is near enough."""
    found: list[bool] = []
    reused = 0
    for step in range(steps):
        may = step > 0 and _may_reuse(point, step, reused)
        reused = reused + 1 if may else 0
        found.append(may)
    return found


def _may_reuse(point: Point, step: int, reused: int) -> bool:
    """Whether a step after the first may be reused, where ``reused`` steps before it were, one after the other."""
    most = point["max_continuous_cached_steps"]
    return step >= point["max_warmup_steps"] and (most < 0 or reused < most) and point["residual_diff_threshold"] > 0


def _is_any_near(point: Point) -> bool:
    return point["residual_diff_threshold"] >= 1


def _purpose(manager: Any) -> str:
    """What the denoiser call that is under way is for."""
    return "without the prompt" if manager.is_separate_cfg_step() else "with the prompt"


def _adapter(pipeline: Any) -> Any:
    """What cache-dit knows of a pipeline: its denoiser, blocks, and what these give; None where it knows nothing.

    Nothing is changed.
    """
    from cache_dit import BlockAdapterRegister
    from diffusers import DiffusionPipeline

    if not isinstance(pipeline, DiffusionPipeline):
        return None
    with _silent():
        try:
            return BlockAdapterRegister.get_adapter(pipeline, skip_post_init=True)
        except Exception:  # what it asserts and imports, it does so of a pipeline of another kind
            return None


def _part_from(denoiser: Any) -> None:
    """Let the modules that stand for the denoiser's blocks hold it as no part of theirs.

    In a call they are its parts, so each would be the other's, and whoever goes through all modules then, as torch's
    counter of arithmetic does, would never end.
    """
    stand_ins = getclosurevars(getclosurevars(denoiser.forward.func).nonlocals["new_forward"]).nonlocals
    for blocks in chain.from_iterable(stand_ins["unified_blocks"].values()):
        vars(blocks)["transformer"] = vars(blocks)["_modules"].pop("transformer")


@contextmanager
def _class_restored(kind: Any) -> Iterator[None]:
    """Let a class have what it has now, also after an exception."""
    before = dict(vars(kind))
    try:
        yield
    finally:
        for name in vars(kind).keys() - before.keys():
            delattr(kind, name)
        for name, value in before.items():
            if vars(kind).get(name) is not value:
                setattr(kind, name, value)


@contextmanager
def _silent() -> Iterator[None]:
    """Let cache-dit not tell each of its settings."""
    handlers = logging.getLogger(_ITS_LOGGER).handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
