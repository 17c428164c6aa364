"""Accelerators: one method or several together, and the registry that knows them all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

from pytest_diffaccel.accelerators.base import (
    COMPUTED,
    HALF_REUSED,
    REUSED,
    GridSize,
    InvalidParams,
    Method,
    PipelineCall,
)
from pytest_diffaccel.accelerators.counters import DENOISER_CALLS
from pytest_diffaccel.accelerators.dbcache import DBCache
from pytest_diffaccel.accelerators.deepcache import DeepCache
from pytest_diffaccel.accelerators.first_block_cache import FirstBlockCache
from pytest_diffaccel.accelerators.magcache import MagCache
from pytest_diffaccel.accelerators.taylorseer import TaylorSeer
from pytest_diffaccel.accelerators.tgate import TGate
from pytest_diffaccel.accelerators.tome import ToMe
from pytest_diffaccel.matrix import Cell, Lesson, Params
from pytest_diffaccel.pipes import described, families_of

#: Kind of a step of the unaccelerated pipeline.
PLAIN = "plain"
_NAME = r"[^\W_](?:[\w .-]{0,62}\w)?"
#: What of some methods, by their names, is learnt in a cell, by method.
Lessons: TypeAlias = Callable[[Cell, Collection[str]], Mapping[str, Lesson]]


@dataclass(frozen=True)
class Accelerator:
    """One or more methods applied together.

    Attributes:
        methods: in the order in which parameters are printed.
    """

    methods: tuple[Method, ...]

    @property
    def name(self) -> str:
        """``"DeepCache"``, ``"DeepCache and ToMe"``, ``"DeepCache, T-Gate, and ToMe"``."""
        names = self.method_names
        if len(names) > 2:
            return f"{', '.join(names[:-1])}, and {names[-1]}"
        return " and ".join(names)

    @property
    def method_names(self) -> list[str]:
        """Names of its methods."""
        return [method.name for method in self.methods]

    def suits(self, pipe: str) -> bool:
        """Whether its methods are for a pipe's kind of denoiser: on another there is nothing to search."""
        return all(method.denoiser in ("", described(pipe).denoiser) for method in self.methods)

    def grid(self, cell: Cell, *, coarse: bool) -> list[Params]:
        """All points: a method's own grid, or the product of coarser ones; none for a pipe that it does not suit."""
        if not self.suits(cell.pipe):
            return []
        sizes: Sequence[GridSize] = ("coarse", "coarse pair", "coarse triple") if coarse else ("full", "pair", "triple")
        size = sizes[min(len(self.methods), len(sizes)) - 1]
        grids = [method.grid(cell, size) for method in self.methods]
        return [dict(zip(self.method_names, row, strict=True)) for row in product(*grids)]

    def check(self, params: Params, steps: int) -> None:
        """Refuse parameters that mean nothing, whatever the pipeline.

        Raises:
            InvalidParams: naming the bad value and the valid ones.
        """
        for method in self.methods:
            method.check(params[method.name], steps)

    def check_pipeline(self, params: Params, pipeline: Any, height: int, width: int) -> None:
        """Refuse a pipeline that a method does not apply to, or that cannot take its parameters.

        Args:
            params: checked, by method.
            pipeline: the diffusers pipeline.
            height: of the images, pixels.
            width: of the images, pixels.

        Raises:
            InvalidParams: naming the method, and what is in its way or what to take instead.
        """
        for method in self.methods:
            if reason := method.applies_to(pipeline):
                raise InvalidParams(f"{method.name}: {reason}; leave it out")
            _check_taught(method, pipeline)
            if reason := method.misfit(params[method.name], pipeline, height, width):
                raise InvalidParams(f"{method.name}: {reason}")

    def check_guidance(self, guidance_scale: float, *, without: str) -> None:
        """Refuse a call without classifier-free guidance where a method needs it.

        Args:
            guidance_scale: of the call; up to 1 there is no guidance.
            without: why the pipeline has none at all, whatever the scale; empty where it has.

        Raises:
            InvalidParams: naming the method, and the scale or the setting that is the reason.
        """
        needing = [method.name for method in self.methods if method.needs_guidance]
        if not needing:
            return
        if without:
            raise InvalidParams(f"{needing[0]} needs classifier-free guidance, but {without}; leave {needing[0]} out")
        if guidance_scale <= 1:
            raise InvalidParams(
                f"{needing[0]} needs classifier-free guidance, but guidance_scale={guidance_scale:g} gives none; "
                f"take one above 1, or leave {needing[0]} out"
            )

    def kinds(self, params: Params, steps: int) -> tuple[str, ...]:
        """The kind of each denoiser call; ``"plain"`` without methods.

        Raises:
            ValueError: when a method names more or fewer calls than there are.
        """
        if not self.methods:
            return (PLAIN,) * steps
        parts = []
        for method in self.methods:
            restarts: frozenset[int] = frozenset()
            for driver in self._drivers(method):
                restarts |= driver.restarts(params[driver.name], steps)
            kinds = method.kinds(params[method.name], steps, restarts)
            if len(kinds) != steps:
                raise ValueError(f"{method.name}: `kinds` names {len(kinds)} denoiser calls of {steps}; name each")
            parts.append([f"{method.name}:{kind}" for kind in kinds])
        return tuple("|".join(kinds) for kinds in zip(*parts, strict=True))

    @property
    def deciding(self) -> Method | None:
        """The method that decides by the picture what a call reuses, which is alone then; None where none does."""
        return next((method for method in self.methods if method.extremes), None)

    @property
    def extremes(self) -> list[Params]:
        """Parameters of the deciding method with which it never reuses, then those with which it does at once."""
        return [{method.name: point} for method in self.methods for point in method.extremes]

    def decided_kinds(self, params: Params, decisions: Sequence[Sequence[bool]]) -> tuple[str, ...]:
        """The kind of each step, by whether each of its denoiser calls reused something: of the deciding method.

        Args:
            params: with which it decided.
            decisions: by step.
        """
        (method,) = self.methods
        kinds = [REUSED if all(step) else HALF_REUSED if any(step) else COMPUTED for step in decisions]
        return tuple(f"{self.name}:{method.decided_kind(params[self.name], kind)}" for kind in kinds)

    def between(self, params: Params, computed_and_reused: Mapping[str, int]) -> dict[str, int]:
        """Arithmetic of a step of which one of two calls is computed and the other reuses, from that of both kinds.

        Args:
            params: of the run.
            computed_and_reused: by kind; of a method that does not decide, any.
        """
        if self.deciding is None:
            return {}
        full, half, least = self.decided_kinds(params, [[False], [False, True], [True]])
        if full not in computed_and_reused or least not in computed_and_reused:
            return {}
        return {half: (computed_and_reused[full] + computed_and_reused[least]) // 2}

    def counters(self, params: Params, steps: int) -> frozenset[str]:
        """The counters that must not stay zero in a run of these parameters."""
        return frozenset().union(*(method.counters(params[method.name], steps) for method in self.methods))

    def without(self, method: Method) -> Accelerator:
        """The others of its methods."""
        return Accelerator(tuple(other for other in self.methods if other is not method))

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Apply every method, a driven one by its driver; returns what generates. Nothing is undone here.

        Raises:
            InvalidParams: when a method has not learnt what it must know of the pipeline.
        """
        # A driver installs the call that knows how to run those it drives, so it goes last.
        for method in sorted(self.methods, key=lambda method: bool(method.drives)):
            _check_taught(method, pipeline)
            if not self._drivers(method):
                call = method.apply(pipeline, call, params)
        return call

    def _drivers(self, method: Method) -> list[Method]:
        return [other for other in self.methods if method.name in other.drives]


class Registry:
    """The methods and accelerators that a search knows. Names are unique."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}
        self._accelerators: dict[str, Accelerator] = {}
        self._combined: dict[frozenset[str], Accelerator] = {}
        self._lessons: Lessons = lambda _cell, _names: {}
        self._taught: dict[tuple[tuple[str, Lesson], ...], Registry] = {}

    def register(self, method: Method) -> Accelerator:
        """Add a method, and the accelerator that is this method alone.

        Raises:
            ValueError: when a method of this name is known already, a name is none, or when what it counts and the
                names of it do not go together, or another method has such a name.
        """
        _check_names(method)
        _check_counters(method)
        for other in self._methods.values():
            shared = sorted(set(method.counted) & set(other.counted))
            if shared and not _is_related(method, other):
                raise ValueError(f"{method.name}: {other.name} counts {', '.join(shared)} too; take another name")
        if method.name in self._methods:
            raise ValueError(f"{method.name}: a method of this name is registered")
        self._methods[method.name] = method
        return self._add(Accelerator((method,)))

    def combine(self, *names: str) -> Accelerator:
        """Add the accelerator that applies the named methods together.

        Raises:
            ValueError: when a name is unknown, there are not two different ones, they are for different kinds of
                denoisers, two have a parameter of one name, one decides by the picture, or they are combined already,
                in whatever order.
        """
        unknown = [name for name in names if name not in self._methods]
        if unknown:
            raise ValueError(f"cannot combine unknown methods {unknown}; known: {', '.join(self._methods)}")
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"cannot combine {' with '.join(names) or 'nothing'}: name two methods or more, each once")
        kinds = {self._methods[name].denoiser for name in names} - {""}
        if len(kinds) > 1:
            raise ValueError(f"cannot combine {' with '.join(names)}: they are for a {' and a '.join(sorted(kinds))}")
        params = Counter(param for name in names for param in self._methods[name].param_names)
        if twice := [param for param, count in params.items() if count > 1]:
            raise ValueError(f"cannot combine {' with '.join(names)}: more than one has a parameter {twice[0]}")
        if deciding := [name for name in names if self._methods[name].extremes]:
            raise ValueError(
                f"cannot combine {' with '.join(names)}: {deciding[0]} decides by the picture what a step reuses, and "
                "what a step costs would depend on it in each of the others"
            )
        return self._add(Accelerator(tuple(self._methods[name] for name in names)))

    def _add(self, accelerator: Accelerator) -> Accelerator:
        together = frozenset(accelerator.method_names)
        if known := self._combined.get(together):
            raise ValueError(f"{accelerator.name}: {known.name} is registered already; leave it out")
        self._accelerators[accelerator.name] = self._combined[together] = accelerator
        return accelerator

    def learning(self, lessons: Lessons) -> Registry:
        """The same methods, which learn from ``lessons`` what they must know where they are used (:meth:`at`)."""
        made = self._with(self._methods)
        made._lessons = lessons
        return made

    def lessons(self, cell: Cell, methods: Collection[str]) -> Mapping[str, Lesson]:
        """What methods of these names have learnt of a cell, by method."""
        return self._lessons(cell, methods)

    def at(self, cell: Cell, methods: Collection[str]) -> Registry:
        """The same, with the methods of these names as they are in a cell: with what they have learnt of it.

        Equal lessons give the same registry. All others are as they were.
        """
        return self.taught(self._lessons(cell, methods))

    def taught(self, lessons: Mapping[str, Lesson]) -> Registry:
        """The same, with methods that have learnt ``lessons``, by their names.

        Raises:
            InvalidParams: for an unknown method.
        """
        if not lessons:
            return self
        self._check_known(lessons)
        known = tuple(sorted((name, tuple(lesson)) for name, lesson in lessons.items()))
        if known not in self._taught:
            changed = {name: self._methods[name].taught(lesson) for name, lesson in known}
            self._taught[known] = self._with({**self._methods, **changed})
        return self._taught[known]

    def _with(self, methods: Mapping[str, Method]) -> Registry:
        """The same accelerators of these methods."""
        made = Registry()
        made._methods = dict(methods)
        for name, accelerator in self._accelerators.items():
            own = Accelerator(tuple(methods[method] for method in accelerator.method_names))
            made._accelerators[name] = made._combined[frozenset(accelerator.method_names)] = own
        return made

    def _check_known(self, methods: Iterable[str]) -> None:
        unknown = sorted(set(methods) - set(self._methods))
        if unknown:
            raise InvalidParams(f"unknown method {', '.join(unknown)}; known: {', '.join(self._methods)}")

    def features(self, kind: str) -> dict[str, Mapping[str, float]]:
        """The features of a step's kind by method, as :meth:`Accelerator.kinds` names kinds; ``{}`` for a plain one."""
        parts = [part.partition(":") for part in kind.split("|") if part != PLAIN]
        return {name: self._methods[name].features(own) for name, _, own in parts}

    def __iter__(self) -> Iterator[Accelerator]:
        return iter(self._accelerators.values())

    @property
    def names(self) -> list[str]:
        """Names of all accelerators in order of registration."""
        return list(self._accelerators)

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods in order of registration."""
        return tuple(self._methods.values())

    @property
    def method_names(self) -> frozenset[str]:
        """Names of all methods."""
        return frozenset(self._methods)

    def select(self, names: Iterable[str]) -> list[Accelerator]:
        """The accelerators of these names, in order of registration."""
        wanted = set(names)
        return [accelerator for name, accelerator in self._accelerators.items() if name in wanted]

    def select_at(self, cell: Cell, names: Collection[str]) -> list[Accelerator]:
        """The same, with their methods as they are in a cell (:meth:`at`)."""
        methods = {method for accelerator in self.select(names) for method in accelerator.method_names}
        return self.at(cell, methods).select(names)

    def suiting(self, pipe: str) -> list[Accelerator]:
        """The accelerators that are for a pipe's kind of denoiser, in order of registration."""
        return [accelerator for accelerator in self if accelerator.suits(pipe)]

    def methods_for(self, pipeline: Any) -> tuple[Method, ...]:
        """The methods that are for a pipeline's kind of denoiser, in order of registration."""
        return tuple(method for method in self.methods if not method.denoiser or hasattr(pipeline, method.denoiser))

    def for_params(self, params: Mapping[str, Any]) -> Accelerator:
        """The accelerator that ``params`` asks for: its methods, none for ``{}``.

        Raises:
            InvalidParams: for an unknown method.
        """
        self._check_known(params)
        # As it was combined, whatever the order: by this, its name and its kinds of steps are known.
        combined = self._combined.get(frozenset(params))
        return combined or Accelerator(tuple(method for name, method in self._methods.items() if name in params))


def _check_taught(method: Method, pipeline: Any) -> None:
    """Refuse a method that has not learnt what it must know of a pipeline: it would do something, silently wrong."""
    families = families_of(pipeline)
    lacking = method.learns(families[0]) if families and method.lesson is None else ""
    if lacking:
        raise InvalidParams(
            f"{method.name}: of a {type(pipeline).__name__} it is not known {lacking}; give what a search has learnt, "
            "which golden/environments.json keeps, or what an unaccelerated generation tells: accelerate(..., "
            "learnt=generate.learn(prompts, seeds)), with the `generate` of accelerate(pipeline, {}, ...)"
        )


def _is_related(method: Method, other: Method) -> bool:
    """Whether one inherits from the other, or both from a third: then a counter of one name is the same."""
    return bool({*type(method).__mro__} & {*type(other).__mro__} - {*Method.__mro__})


def _check_names(method: Method) -> None:
    """Refuse names that golden keys, case ids, kinds of steps or sentences could not tell apart."""
    if isinstance(method, type):
        raise ValueError(f"{method.__name__} is a class; register a method: registry.register({method.__name__}())")
    if not re.fullmatch(_NAME, method.name) or " and " in method.name:
        raise ValueError(
            f"{method.name!r} is no name for a method; write letters, digits, and blanks, . _ - between them, "
            'and no " and ", which combinations have'
        )
    for kind, names in (("param_names", method.param_names), ("counted", method.counted)):
        if isinstance(names, str) or not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise ValueError(f'{method.name}: {kind} = {names!r}; write names in a tuple, such as ("my_interval",)')


def _check_counters(method: Method) -> None:
    watches = type(method).watch is not Method.watch
    if method.counted and not watches:
        raise ValueError(
            f"{method.name} names {', '.join(method.counted)} in `counted`, and has no `watch` that counts it: add "
            "one, or name nothing: then it is seen to act by what the denoiser gives with and without it"
        )
    if watches and not method.counted:
        raise ValueError(f"{method.name} has a `watch`, but names no counter: name what it counts in `counted`")
    if DENOISER_CALLS in method.counted:
        raise ValueError(f"{method.name} counts {DENOISER_CALLS}, as every run does: give its counter another name")


def default_registry() -> Registry:
    """DeepCache, T-GATE, ToMe and the three combinations of the tasks, in the tasks' order; then transformers' caches.

    A transformer takes one cache at a time, so there are no combinations of those. All are known everywhere, DBCache
    also where cache-dit is not installed: records of it are read there, and scripts made of them.
    """
    registry = Registry()
    for method in (DeepCache(), TGate(), ToMe()):
        registry.register(method)
    registry.combine("DeepCache", "ToMe")
    registry.combine("DeepCache", "T-Gate")
    registry.combine("DeepCache", "T-Gate", "ToMe")
    registry.register(TaylorSeer())
    registry.register(MagCache())
    registry.register(FirstBlockCache())
    registry.register(DBCache())
    return registry
