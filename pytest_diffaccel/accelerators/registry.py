"""The registry: the methods and accelerators that are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from pytest_diffaccel.accelerators.base import InvalidParams, Method
from pytest_diffaccel.accelerators.composition import PLAIN, Accelerator
from pytest_diffaccel.accelerators.counters import DENOISER_CALLS
from pytest_diffaccel.accelerators.dbcache import DBCache
from pytest_diffaccel.accelerators.deepcache import DeepCache
from pytest_diffaccel.accelerators.first_block_cache import FirstBlockCache
from pytest_diffaccel.accelerators.magcache import MagCache
from pytest_diffaccel.accelerators.taylorseer import TaylorSeer
from pytest_diffaccel.accelerators.tgate import TGate
from pytest_diffaccel.accelerators.tome import ToMe
from pytest_diffaccel.matrix import Cell, Lesson

_NAME = r"[^\W_](?:[\w .-]{0,62}\w)?"
#: What of some methods, by their names, is learnt in a cell, by method.
Lessons: TypeAlias = Callable[[Cell, Collection[str]], Mapping[str, Lesson]]


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

    def exclusive(self, accelerator: Accelerator) -> list[str]:
        """Names of its caches of which a transformer takes one at a time, unless they were combined; empty for one."""
        caches = [method.name for method in accelerator.methods if method.denoiser == "transformer"]
        return caches if len(caches) > 1 and accelerator.name not in self._accelerators else []

    def for_params(self, params: Mapping[str, Any]) -> Accelerator:
        """The accelerator that ``params`` asks for: its methods, none for ``{}``.

        Raises:
            InvalidParams: for an unknown method.
        """
        self._check_known(params)
        # As it was combined, whatever the order: by this, its name and its kinds of steps are known.
        combined = self._combined.get(frozenset(params))
        return combined or Accelerator(tuple(method for name, method in self._methods.items() if name in params))


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
