"""What cache-dit knows of a pipeline and puts in its place, and what of that has to be undone at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getclosurevars
from itertools import chain
from typing import Any

from pytest_diffaccel.accelerators.restoration import undone

# Of cache-dit's loggers, whose handler writes to standard output, which is the session's.
_ITS_LOGGER = "CACHE_DIT"


def purpose_of(manager: Any) -> str:
    """What the denoiser call that is under way is for."""
    return "without the prompt" if manager.is_separate_cfg_step() else "with the prompt"


def adapter_of(pipeline: Any) -> Any:
    """What cache-dit knows of a pipeline: its denoiser, blocks, and what these give; None where it knows nothing.

    Nothing is changed.
    """
    from cache_dit import BlockAdapterRegister
    from diffusers import DiffusionPipeline

    if not isinstance(pipeline, DiffusionPipeline):
        return None
    with silent():
        try:
            return BlockAdapterRegister.get_adapter(pipeline, skip_post_init=True)
        except Exception:  # what it asserts and imports, it does so of a pipeline of another kind
            return None


def part_from(denoiser: Any) -> None:
    """Let the modules that stand for the denoiser's blocks hold it as no part of theirs.

    In a call they are its parts, so each would be the other's, and whoever goes through all modules then, as torch's
    counter of arithmetic does, would never end.
    """
    stand_ins = getclosurevars(getclosurevars(denoiser.forward.func).nonlocals["new_forward"]).nonlocals
    for blocks in chain.from_iterable(stand_ins["unified_blocks"].values()):
        vars(blocks)["transformer"] = vars(blocks)["_modules"].pop("transformer")


@contextmanager
def class_restored(kind: Any) -> Iterator[None]:
    """Let a class have what it has now, also after an exception."""
    before = dict(vars(kind))

    def put_back() -> None:
        for name in vars(kind).keys() - before.keys():
            delattr(kind, name)
        for name, value in before.items():
            if vars(kind).get(name) is not value:
                setattr(kind, name, value)

    with undone(put_back):
        yield


@contextmanager
def silent() -> Iterator[None]:
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
