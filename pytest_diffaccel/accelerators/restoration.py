"""Exact undoing of whatever a method did to a pipeline, whether or not the method can undo it itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

from pytest_diffaccel.pipes import denoiser_of

if TYPE_CHECKING:
    from torch import nn


# Where diffusers keeps the hooks of a module, its caches among them.
_HOOKS = "_diffusers_hook"


class _Contents:
    """What many dictionaries hold, kept in a few long lists.

    A copy of each dictionary would be thousands of objects: they alone set off collections of garbage that take longer
    than all copying.
    """

    def __init__(self, holders: Sequence[dict[Any, Any]]) -> None:
        self._sizes = list(map(len, holders))
        filled = list(filter(None, holders))
        self._names = list(chain.from_iterable(filled))
        self.values = list(chain.from_iterable(holder.values() for holder in filled))

    def restore(self, holders: Sequence[dict[Any, Any]]) -> None:
        """Put back what ``holders``, as many as were given at first, hold; what holds it still is not touched."""
        start = 0
        for holder, size in zip(holders, self._sizes, strict=True):
            if size or holder:
                names, values = self._names[start : start + size], self.values[start : start + size]
                start += size
                # By identity: the values may be tensors, which compare element by element.
                if list(holder) != names or not all(map(is_, holder.values(), values)):
                    holder.clear()
                    holder.update(zip(names, values, strict=True))


class ModuleStates:
    """Class and attributes of many modules, and the content of those attributes that are dictionaries.

    Libraries change the dictionaries in place: hooks, buffers, caches. So does diffusers its own registry of a module's
    hooks, whose attributes are a dictionary and lists.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._classes = list(map(type, modules))
        self._attributes = _Contents(list(map(vars, modules)))
        registries = [vars(value) for value in map(_hooks_of, modules) if value is not None]
        inside = list(chain.from_iterable(registry.values() for registry in registries))
        held = [value for value in (*self._attributes.values, *inside) if isinstance(value, dict)]
        self._containers = [*held, *registries]
        self._items = _Contents(self._containers)
        self._lists = [(value, tuple(value)) for value in inside if isinstance(value, list)]

    def restore(self) -> None:
        """Put all of it back."""
        for module, cls in zip(self._modules, self._classes, strict=True):
            if type(module) is not cls:
                module.__class__ = cls
        self._attributes.restore(list(map(vars, self._modules)))
        self._items.restore(self._containers)
        for value, items in self._lists:
            value[:] = items


def _hooks_of(module: nn.Module) -> Any:
    return vars(module).get(_HOOKS)


@contextmanager
def restored(pipeline: Any, *, modules: bool = True) -> Iterator[None]:
    """Put the pipeline object, its denoiser and every module in it back as they were, also after an exception.

    What counts is each module's class and attributes (patched ``forward`` methods, caches, hooks, swapped classes),
    not the values of its parameters: no method changes weights.

    Args:
        pipeline: a diffusers pipeline.
        modules: whether all modules come back too, and not only the denoiser itself.
    """
    denoiser = denoiser_of(pipeline)
    states = ModuleStates(list(denoiser.modules()) if modules else [denoiser])
    attributes = dict(vars(pipeline))

    def put_back() -> None:
        states.restore()
        vars(pipeline).clear()
        vars(pipeline).update(attributes)

    with undone(put_back):
        yield


@contextmanager
def undone(put_back: Callable[[], None]) -> Iterator[None]:
    """Undo in the end what is done within, to the last, also where Ctrl-C cuts that very undoing off.

    Args:
        put_back: undoes it; it can be called again, wherever it was cut off.
    """
    try:
        try:
            yield
        finally:
            put_back()
    except BaseException:
        put_back()
        raise
