"""Exact undoing of whatever a method did to a pipeline, whether or not the method can undo it itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class _ObjectState:
    """Class and attributes of one object; containers that libraries change in place are kept as copies."""

    target: Any
    cls: type
    attributes: dict[str, Any]
    containers: dict[str, Any]

    @classmethod
    def of(cls, target: Any) -> _ObjectState:
        containers = {
            name: value.copy() for name, value in vars(target).items() if isinstance(value, (dict, OrderedDict))
        }
        return cls(target, type(target), dict(vars(target)), containers)

    def restore(self) -> None:
        if type(self.target) is not self.cls:
            self.target.__class__ = self.cls
        vars(self.target).clear()
        vars(self.target).update(self.attributes)
        for name, content in self.containers.items():
            container = self.attributes[name]
            if not _same_items(container, content):
                container.clear()
                container.update(content)


@contextmanager
def restored(pipeline: Any) -> Iterator[None]:
    """Put the pipeline object, its UNet and every module in it back as they were, also after an exception.

    What counts is each module's class and attributes (patched ``forward`` methods, caches, hooks, swapped classes),
    not the values of its parameters: no method changes weights.

    Args:
        pipeline: a diffusers pipeline with a ``unet``.
    """
    unet: nn.Module = pipeline.unet
    states = [_ObjectState.of(module) for module in unet.modules()]
    attributes = dict(vars(pipeline))
    try:
        yield
    finally:
        for state in states:
            state.restore()
        vars(pipeline).clear()
        vars(pipeline).update(attributes)


def _same_items(left: dict[str, Any], right: dict[str, Any]) -> bool:
    # By identity: the values may be tensors, which compare element by element.
    return list(left) == list(right) and all(left[name] is right[name] for name in left)
