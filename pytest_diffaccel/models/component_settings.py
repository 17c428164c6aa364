"""What a loaded pipeline's components are set to, as fingerprints: settings decide pictures as much as weights do."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from pytest_diffaccel.models.schedulers import original_settings

# Of no effect on pictures, or part of an environment by themselves.
_LEFT_OUT = ("architectures", "dtype", "torch_dtype", "transformers_version", "name_or_path")
# Of a tokenizer's own, what its last call left behind.
_LAST_CALL = ("version", "padding", "truncation")
_OF_TOKENIZERS = ("model_max_length", "padding_side", "truncation_side", "special_tokens_map")


def settings_digests(pipeline: Any) -> dict[str, str]:
    """SHA-256 (64 hex digits) of the settings of each component of a pipeline, and of its own (``"pipeline"``).

    They are settings as loaded, without paths, and without what equals its class's default: another version of a
    library may know more of them. The scheduler's are those that the pipeline was saved with. A tokenizer's are its
    whole vocabulary with its rules, and how it pads and cuts.

    Args:
        pipeline: a diffusers pipeline.
    """
    import diffusers

    original = original_settings(pipeline)
    parts = {name: part for name, part in pipeline.components.items() if part is not None and name != "scheduler"}
    own = {name: value for name, value in pipeline.config.items() if name not in pipeline.components}
    settings = {
        **{name: _settings(part) for name, part in parts.items()},
        "scheduler": _of_diffusers(getattr(diffusers, original["_class_name"]), original),
        "pipeline": _of_diffusers(type(pipeline), own),
    }
    return {name: _digest(content) for name, content in settings.items()}


def _settings(part: Any) -> dict[str, Any]:
    if not hasattr(part, "config"):
        return _of_tokenizer(part)
    if isinstance(part.config, Mapping):
        return _of_diffusers(type(part), part.config)
    defaults = type(part.config)().to_dict()
    return {**_explicit(part.config.to_dict(), defaults), "_class_name": type(part).__name__}


def _of_diffusers(its_class: type, config: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(its_class).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
    }
    return {**_explicit(config, defaults), "_class_name": its_class.__name__}


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    content = {name: value for name, value in rules.items() if name not in _LAST_CALL}
    own = {name: getattr(tokenizer, name) for name in _OF_TOKENIZERS}
    return {**content, **own, "_class_name": type(tokenizer).__name__}


def _explicit(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in settings.items()
        if not name.startswith("_")
        and name not in _LEFT_OUT
        and (name not in defaults or _canonical(value) != _canonical(defaults[name]))
    }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
