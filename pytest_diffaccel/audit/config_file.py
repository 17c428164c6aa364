"""A preset in YAML or JSON: a config as cache-dit loads it, or parameters by method as golden has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.audit.given import Given, PresetError
from pytest_diffaccel.audit.known_calls import KNOWN_CALLS, FoundCall, KnownCall
from pytest_diffaccel.audit.masks import MASK, made_mask

# As cache-dit 1.5.3 reads a file: its section on caches, or the whole file where there is none of its sections.
_CACHE = "cache_config"
_SECTIONS = (_CACHE, "parallelism_config", "quantize_config", "attention_backend")
_TYPE, _DEFAULT_TYPE = "cache_type", "DBCache"
# What parsers raise of what is neither; YAML's, of a tag whose text does not suit it.
_BROKEN = (ValueError, RecursionError, LookupError, AttributeError, TypeError, OverflowError)


def read_config(text: str, registry: Registry, *, is_json: bool) -> tuple[list[FoundCall], list[str]]:
    """The method that a config sets, or those whose parameters it holds, and remarks on what is left out.

    Args:
        text: the file's.
        registry: the methods known.
        is_json: whether it is JSON; else YAML.

    Raises:
        PresetError: for what is neither, and for a cache that is not known here.
    """
    data = _parsed(text, is_json=is_json)
    if data.keys() <= registry.method_names:
        return [_own(name, point) for name, point in data.items()], []
    # One method's parameters, all of them; DBCache's are what cache-dit calls its own.
    own = [one.name for one in registry.methods if data.keys() == {*one.param_names} and one.name != _DEFAULT_TYPE]
    if own:
        return [_own(own[0], data)], []
    sections = [name for name in _SECTIONS if name in data]
    remarks = [f"{name} is left out" for name in sections if name != _CACHE]
    if sections:
        remarks += [f"{name} is left out" for name in data if name not in _SECTIONS]
    settings = data.get(_CACHE) if sections else data
    if not isinstance(settings, dict) or not settings:
        raise PresetError(f"there is no {_CACHE}: nothing to measure")
    if not _is_named(settings):
        raise PresetError(f"not all settings{f' in {_CACHE}' if sections else ''} have names")
    return [_of_cache_dit(settings, f"in {_CACHE}" if sections else "")], remarks


def _parsed(text: str, *, is_json: bool) -> dict[str, Any]:
    import yaml

    try:
        data: dict[str, Any] = json.loads(text) if is_json else _of_yaml(text)
    except (*_BROKEN, yaml.YAMLError) as error:
        raise PresetError(f"no {'JSON' if is_json else 'YAML'}: {' '.join(str(error).split())}") from error
    if not _is_named(data) or not data:
        raise PresetError(
            "no settings by name; write a config as cache-dit loads it, or parameters by method: "
            "DeepCache: {cache_interval: 3, cache_branch_id: 0}"
        )
    return data


def _of_yaml(text: str) -> Any:
    """What YAML says, without aliases: a few lines of these stand for more than any memory holds."""
    import yaml

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise PresetError(f"line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not read; write it out")
    return yaml.safe_load(text)


def _is_named(data: Any) -> bool:
    """Whether it is settings by name."""
    return isinstance(data, dict) and all(isinstance(name, str) for name in data)


def _own(name: str, point: Any) -> FoundCall:
    if not _is_named(point):
        raise PresetError(f"{name}: {point!r} are no parameters by name")
    return FoundCall(name, KnownCall(name, point), "", {})


def _of_cache_dit(settings: Mapping[str, Any], place: str) -> FoundCall:
    kind = settings.get(_TYPE, _DEFAULT_TYPE)
    name = f"{kind}Config"
    if name not in KNOWN_CALLS:
        said = ", ".join(f"{setting}={value!r}" for setting, value in settings.items() if setting != _TYPE)
        methods = ", ".join(dict.fromkeys(call.method for call in KNOWN_CALLS.values()))
        raise PresetError(
            f"{kind}{' of cache-dit' if kind == _DEFAULT_TYPE else ''} ({said}) is no method that is known here, so "
            f"nothing of it can be measured; presets can be of {methods}"
        )
    if kind == _DEFAULT_TYPE:
        settings = _with_mask(_with_series(settings))
    given = {setting: Given(repr(value), value, is_literal=True) for setting, value in settings.items()}
    return FoundCall(name, KNOWN_CALLS[name], place, {name: one for name, one in given.items() if name != _TYPE})


def _with_series(settings: Mapping[str, Any]) -> dict[str, Any]:
    """DBCache's settings, in which order 0 means no series: a file turns it on apart, and for one of two streams."""
    taken = dict(settings)
    is_on, order = taken.pop("enable_taylorseer", False), taken.pop("taylorseer_order", 1)
    if not is_on:
        return {**taken, "taylorseer_order": 0}
    return {"enable_encoder_taylorseer": False, **taken, "taylorseer_order": order}


def _with_mask(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """DBCache's settings, of whose mask a file may give the name."""
    name = settings.get(MASK)
    mask = made_mask(settings.get("num_inference_steps"), name) if isinstance(name, str) else None
    return settings if mask is None else {**settings, MASK: mask}
