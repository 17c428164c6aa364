"""Undoing what was done to a pipeline's modules: whatever it was, exactly, and at little cost."""

from __future__ import annotations

import gc
import signal
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_diffaccel.accelerators import restoration
from pytest_diffaccel.accelerators.restoration import restored, undone


class Patched(nn.Linear):
    """What a method puts in a module's class's place."""


def tree(blocks: int = 3) -> Any:
    """A pipeline whose UNet is ``blocks`` of three modules each, and their container."""
    unet = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Dropout()) for _ in range(blocks)))
    for module in unet.modules():
        vars(module)["notes"] = {"first": torch.zeros(2), "second": torch.ones(2)}
        vars(module)["table"] = torch.zeros(2)
    return SimpleNamespace(unet=unet, scale=1.0)


def _swap_class(module: nn.Module) -> None:
    if type(module) is nn.Linear:
        module.__class__ = Patched


def _move_first_note_to_the_end(module: nn.Module) -> None:
    notes = vars(module)["notes"]
    if "first" in notes:
        notes["first"] = notes.pop("first")


def _move_first_attribute_to_the_end(module: nn.Module) -> None:
    held = vars(module)
    held["training"] = held.pop("training")


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "class": _swap_class,
    "forward": lambda module: setattr(module, "forward", lambda *args: args),
    "attribute gone": lambda module: vars(module).pop("table", None),
    "attribute of equal value": lambda module: vars(module).update(table=torch.zeros(2)),
    "container in another's place": lambda module: vars(module).update(notes={"first": 1}),
    "container that was not there": lambda module: vars(module).update(cache={1: torch.zeros(2)}),
    "item more": lambda module: vars(module)["notes"].update(third=3),
    "item gone": lambda module: vars(module)["notes"].pop("second", None),
    "item of equal value": lambda module: vars(module)["notes"].update(second=torch.ones(2)),
    "items in another order": _move_first_note_to_the_end,
    "attributes in another order": _move_first_attribute_to_the_end,
    "hook before": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "hook after": lambda module: module.register_forward_hook(lambda *_: None),
    "buffer": lambda module: module.register_buffer("kept", torch.zeros(1)),
    "submodule": lambda module: module.add_module("added", nn.Identity()),
    "submodule gone": lambda module: module._modules.clear(),
}


def state(pipeline: Any, modules: list[nn.Module]) -> list[Any]:
    """All that is to come back, by identity and in order."""
    found: list[Any] = [[(name, id(value)) for name, value in vars(pipeline).items()]]
    for module in modules:
        held = vars(module)
        inside = [[(key, id(one)) for key, one in value.items()] for value in held.values() if isinstance(value, dict)]
        found.append((type(module), [(name, id(value)) for name, value in held.items()], inside))
    return found


@settings(max_examples=150)
@given(
    changes=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(sorted(CHANGES))), max_size=12), fails=st.booleans()
)
def test_whatever_was_done_is_undone(changes: list[tuple[int, str]], fails: bool) -> None:
    pipeline = tree()
    modules = list(pipeline.unet.modules())
    before = state(pipeline, modules)
    # What is made in the block is kept to its end: what comes after must not get its id.
    kept = []
    try:
        with restored(pipeline):
            for place, name in changes:
                kept.append(dict(vars(modules[place])))
                CHANGES[name](modules[place])
            pipeline.scale, pipeline.extra = 2.0, 3.0
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert state(pipeline, modules) == before


def test_without_modules_only_the_pipelines_and_its_denoisers_own_attributes_come_back() -> None:
    pipeline = tree()
    inner = next(iter(pipeline.unet))
    with restored(pipeline, modules=False):
        pipeline.scale = 2.0
        pipeline.unet.marked = inner.marked = True
    assert pipeline.scale == 1.0
    assert not hasattr(pipeline.unet, "marked")
    assert inner.marked


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("cut_off_at", range(6))
def test_ctrl_c_while_things_are_put_back_loses_nothing(cut_off_at: int, fails: bool) -> None:
    """Wherever in the putting back it comes."""
    pipeline = tree()
    before = state(pipeline, list(pipeline.unet.modules()))
    places = iter(range(1000))

    class Interrupting(dict[str, Any]):
        def clear(self) -> None:
            if next(places) == cut_off_at:
                raise KeyboardInterrupt
            super().clear()

    def put_back() -> None:
        for holder in holders:
            holder.clear()
            holder["kept"] = True

    holders = [Interrupting() for _ in range(5)]
    with suppress(KeyboardInterrupt, ZeroDivisionError), restored(pipeline), undone(put_back):
        pipeline.scale = 2.0
        pipeline.unet.marked = True
        if fails:
            raise ZeroDivisionError
    assert all(holders)
    assert state(pipeline, list(pipeline.unet.modules())) == before


def test_ctrl_c_at_the_begin_of_restoring_leaves_the_pipeline_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real signal, in the middle of what puts modules back."""
    pipeline = tree()
    before = state(pipeline, list(pipeline.unet.modules()))
    whole = restoration._Contents.restore

    def interrupted(contents: Any, holders: Any) -> None:
        monkeypatch.setattr(restoration._Contents, "restore", whole)
        signal.raise_signal(signal.SIGINT)
        whole(contents, holders)

    monkeypatch.setattr(restoration._Contents, "restore", interrupted)
    before_it = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    was_cut_off = False
    try:
        with restored(pipeline):
            pipeline.scale = 2.0
            pipeline.unet.marked = True
    except KeyboardInterrupt:
        was_cut_off = True
    finally:
        signal.signal(signal.SIGINT, before_it)
    assert was_cut_off
    assert state(pipeline, list(pipeline.unet.modules())) == before


def test_keys_need_not_be_strings() -> None:
    pipeline = tree(1)
    hooks: OrderedDict[int, Any] = pipeline.unet._forward_pre_hooks
    pipeline.unet.register_forward_pre_hook(lambda *_: None)
    before = list(hooks.items())
    with restored(pipeline):
        hooks.clear()
    assert list(hooks.items()) == before


@pytest.mark.parametrize("blocks", [10, 300])
def test_a_snapshot_gives_the_garbage_collector_nothing_to_do(blocks: int) -> None:
    """Objects a module would be thousands: enough to set off a collection that takes longer than the snapshot."""
    pipeline = tree(blocks)
    gc.collect()
    gc.disable()
    try:
        before = gc.get_count()[0]
        with restored(pipeline):
            allocated = gc.get_count()[0] - before
    finally:
        gc.enable()
    assert allocated < 50
