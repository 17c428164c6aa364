"""From the calls of a preset to parameters by method, and whether they mean anything where they are to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.audit.config_file import read_config
from pytest_diffaccel.audit.given import PresetError
from pytest_diffaccel.audit.known_calls import FoundCall
from pytest_diffaccel.audit.python_file import known_calls, read_python
from pytest_diffaccel.matrix import Cell, Params
from pytest_diffaccel.pipes import PipeSpec, described
from pytest_diffaccel.words import counted

# Nobody's preset is as large; a parser of Python takes memory by a hundred times a file's size.
_LARGEST_BYTES = 1_000_000
# By its suffix; anything else is Python.
_CONFIGS = {".json": True, ".yaml": False, ".yml": False}


@dataclass(frozen=True)
class Preset:
    """What a file asks for.

    Attributes:
        path: of the file.
        params: parameters by method, in the registry's order.
        places: by method, where they stand, for people: ``"line 4"``; empty where that says nothing.
        steps: the number of steps that it names; None where it names none.
        remarks: what of it is measured otherwise, or left out, a sentence each.
    """

    path: Path
    params: Params
    places: Mapping[str, str]
    steps: int | None
    remarks: tuple[str, ...]


def read_preset(path: Path, registry: Registry, pipe: PipeSpec | None = None) -> Preset:
    """Read a preset: Python by its syntax tree alone, or YAML or JSON by the file's suffix.

    Args:
        path: the file.
        registry: the methods known.
        pipe: where it is to be measured; None: where no method must learn anything.

    Raises:
        FileNotFoundError: when there is none.
        PresetError: (a ``ValueError``) naming file and line of what cannot be measured.
    """
    size = path.stat().st_size
    if not path.is_file():  # a pipe or a device never ends
        raise PresetError(f"{path}: that is no regular file")
    if size > _LARGEST_BYTES:
        raise PresetError(f"{path}: {size} bytes are no preset; at most {_LARGEST_BYTES} are read")
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = _CONFIGS.get(path.suffix.lower())
        found, remarks = read_python(text) if is_json is None else read_config(text, registry, is_json=is_json)
        return _preset(path, [_as_here(one) for one in found], remarks, registry, pipe)
    except UnicodeDecodeError as error:
        raise PresetError(f"{path}: no text in UTF-8") from error
    except PresetError as error:
        raise PresetError(f"{path}: {error}") from error


def _as_here(one: FoundCall) -> FoundCall:
    """A call with its settings as they are named here."""
    try:
        return replace(one, settings=one.call.as_here(one.settings))
    except PresetError as error:
        raise PresetError(f"{_at(one)}{error}") from error


def _preset(
    path: Path, found: Sequence[FoundCall], remarks: Sequence[str], registry: Registry, pipe: PipeSpec | None
) -> Preset:
    if not found:
        raise PresetError(f"no settings of a method that is known here; {known_calls()}")
    by_method: dict[str, list[FoundCall]] = {}
    for one in found:
        by_method.setdefault(one.call.method, []).append(one)
    _refuse_unknown(by_method, registry)
    _refuse_several_caches(by_method, registry)
    said = [*remarks]
    points: dict[str, dict[str, Any]] = {}
    for method, calls in by_method.items():
        points[method] = {**_defaults(calls), **_given(calls)}
    steps = {_steps(one) for one in found} - {None}
    accelerator = registry.for_params(points)
    learning = [method.name for method in accelerator.methods if pipe and method.learns(pipe)]
    for method, calls in by_method.items():
        said += _remarks(calls, learns=method in learning)
    return Preset(
        path=path,
        params={method.name: points[method.name] for method in accelerator.methods},
        places={method: ", ".join(dict.fromkeys(one.place for one in calls)) for method, calls in by_method.items()},
        steps=steps.pop() if len(steps) == 1 else None,
        remarks=tuple(dict.fromkeys(said)),
    )


def _refuse_unknown(by_method: Mapping[str, Sequence[FoundCall]], registry: Registry) -> None:
    for method, (first, *_) in by_method.items():
        if method not in registry.method_names:
            known = ", ".join(one.name for one in registry.methods)
            raise PresetError(f"{_at(first)}{method} is no method that is known here; known are {known}")


def _refuse_several_caches(by_method: Mapping[str, Sequence[FoundCall]], registry: Registry) -> None:
    """A transformer takes one cache at a time, unless two were combined."""
    caches = registry.exclusive(registry.for_params({method: {} for method in by_method}))
    if caches:
        said = " and ".join(f"{_at(by_method[name][0])}{name}" for name in caches)
        raise PresetError(f"{said}: a transformer takes one cache at a time; audit each in a file of its own")


def _defaults(calls: Sequence[FoundCall]) -> dict[str, Any]:
    """What several calls for one method take together where they are given nothing."""
    most_first = sorted(calls, key=lambda one: -len(one.call.params))
    return {name: value for one in most_first for name, value in one.call.params.items()}


def _given(calls: Sequence[FoundCall]) -> dict[str, Any]:
    """The parameters that several calls for one method give together.

    Raises:
        PresetError: when two of them give other values, or two of one name do not give the same.
    """
    given: dict[str, Any] = {}
    for number, one in enumerate(calls):
        own = _own(one)
        for earlier in calls[:number]:
            before = _own(earlier)
            is_other = earlier.name == one.name and before != own
            if is_other or any(before[name] != own[name] for name in before.keys() & own):
                raise PresetError(
                    f"{earlier.place} gives {_spelled(before)}, and {one.place} {_spelled(own)}; keep one of the two"
                )
        given |= own
    return given


def _own(one: FoundCall) -> dict[str, Any]:
    return {name: given.value for name, given in one.settings.items() if name in one.call.params}


def _spelled(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in point.items()) or "nothing"


def _steps(one: FoundCall) -> int | None:
    """The steps that a call is for; None where it does not say, and takes any."""
    given = one.settings.get(one.call.steps)
    steps = given.value if given else one.call.default_steps
    return steps if isinstance(steps, int) else None


def _remarks(calls: Sequence[FoundCall], *, learns: bool) -> Iterator[str]:
    """What of the calls is measured otherwise than it says, or not at all.

    Args:
        calls: for one method.
        learns: whether the method learns something of the pipe, whatever they say of that.
    """
    for one in calls:
        call = one.call
        for name, default in call.others.items():
            given = one.settings.get(name)
            text, here = given.text if given else default, call.here.get(name, default)
            source = "" if given else ", which it is where none is given"
            if learns and name in call.learnt:
                yield f"{_at(one)}{name}={text}{source}: measured with what {call.method} learns of the pipe here"
            elif _last(text) != _last(here):
                yield f"{_at(one)}{name}={text}{source}: measured with {here}"
        unknown = [name for name in one.settings if name not in (*call.params, *call.others, call.steps)]
        if unknown and not call.is_generating:
            said = ", ".join(f"{name}={one.settings[name].text}" for name in unknown)
            yield f"{_at(one)}{said}: {call.method} has no such setting here; measured without"


def _at(one: FoundCall) -> str:
    return f"{one.place}: " if one.place else ""


def _last(text: str) -> str:
    """The last part of a dotted name: ``float32`` of ``torch.float32``; numbers as they are."""
    return text.rpartition(".")[2] if text.replace(".", "").replace("_", "").isidentifier() else text


def check_preset(preset: Preset, cell: Cell, registry: Registry) -> list[str]:
    """Refuse a preset of which a method could not be measured in ``cell``; say of those that act there in no step.

    Returns:
        Remarks, a sentence each.

    Raises:
        PresetError: naming each such setting, where it stands, and its valid range.
    """
    accelerator = registry.for_params(preset.params)
    if not accelerator.suits(cell.pipe):
        suiting = "; ".join(one.name for one in registry.suiting(cell.pipe)) or "none that is known"
        raise PresetError(
            f"{preset.path}: {accelerator.name} is not for {cell.pipe}, whose denoiser is a "
            f"{described(cell.pipe).denoiser}; those that are: {suiting}"
        )
    wrong, remarks = [], []
    for method in accelerator.methods:
        point, place = preset.params[method.name], preset.places[method.name]
        at = f"{place}: " if place else ""
        try:
            method.check(point, cell.steps)
        except InvalidParams as error:
            wrong.append(f"{at}{error}")
            continue
        is_known = not method.lacks(described(cell.pipe))
        if is_known and method.counted and not method.counters(point, cell.steps):
            remarks.append(f"{at}{method.name} acts in no step of {cell.steps} with these settings")
    if wrong:
        raise PresetError(f"{preset.path}: with {counted(cell.steps, 'step')}: {'; '.join(wrong)}")
    if preset.steps not in (None, cell.steps):
        remarks.append(f"the preset is for {counted(preset.steps or 0, 'step')}; measured with {cell.steps}")
    return remarks
