"""Options in a project's configuration file: every one that is no matter of one run alone is a key there, too."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_diffaccel.plugin.judge_options import JUDGE_OPTIONS
from pytest_diffaccel.settings.option_types import DeclaredOption
from pytest_diffaccel.settings.options import SEARCH_OPTIONS
from pytest_diffaccel.words import meant

#: All options, of searches, gate and judge.
OPTIONS: tuple[DeclaredOption, ...] = (*SEARCH_OPTIONS, *JUDGE_OPTIONS)
_OF_ACTION = {"store_true": "bool", "append": "linelist"}
_WRITTEN = {"bool": "true or false", "linelist": "a list of texts in quotes", "string": "one value, as text in quotes"}


@dataclass(frozen=True)
class FromKey:
    """An option's value as the configuration has it.

    Attributes:
        option: the option.
        value: its value, of the same type as from the command line.
        origin: what to call it in an error: ``"diffaccel_seed in pyproject.toml"``.
    """

    option: DeclaredOption
    value: Any
    origin: str


_FOUND = pytest.StashKey[tuple[FromKey, ...]]()


def add_keys(parser: pytest.Parser) -> None:
    """Declare the keys."""
    for option in OPTIONS:
        if option.key is not None:
            said = f"{option.names[0]}: {option.keywords['help']}".replace("%%", "%")
            parser.addini(option.key, said, type=_ini_type(option), default=None)


def read_keys(config: pytest.Config) -> None:
    """Let the configuration's values be what options are when the command line, parsed next, does not say otherwise.

    Raises:
        pytest.UsageError: for a bad value, naming key, file, value and fix.
    """
    given = config.known_args_namespace
    found = []
    for option in OPTIONS:
        read = None if option.key is None else _read(config, option, option.key)
        # argparse adds to a list that is there already, instead of replacing it.
        is_listed = _ini_type(option) == "linelist" and getattr(given, option.dest)
        if read is not None and option.when(given) and not is_listed:
            setattr(config.option, option.dest, read.value)
            found.append(read)
    config.stash[_FOUND] = tuple(found)


def key_like(warning: str) -> str:
    """Of pytest's warning of a key that nobody declares, which of ours may be meant, in a sentence; empty for none."""
    unknown = re.fullmatch(r"Unknown config option: (diffaccel\w*)\s*", warning)
    if unknown is None:
        return ""
    near = meant(unknown[1], {option.key: option.key for option in OPTIONS if option.key is not None})
    return f"there is no key {unknown[1]}{near}" if near else ""


def in_terms_of_keys(said: str, config: pytest.Config) -> str:
    """An error about an option or its value (``--pipe: ...``), or about the file that it names, in terms of its key.

    Args:
        said: the error.
        config: pytest's, after its command line was parsed.
    """
    about, colon, reason = said.partition(":")
    option, _, value = about.partition(" ")
    for key in config.stash.get(_FOUND, ()):
        if getattr(config.option, key.option.dest) != key.value:
            continue
        if colon and option in key.option.names:
            return f"{key.origin}: {value}:{reason}" if value else f"{key.origin}:{reason}"
        if key.option.file_pattern is not None:
            found = re.fullmatch(key.option.file_pattern, key.value)
            file = found[1] if found and found.lastindex else key.value
            # Errors quote it as Python does, which writes two backslashes for one.
            if file in said or repr(file)[1:-1] in said:
                return f"{said} ({key.origin})"
    return said


def _ini_type(option: DeclaredOption) -> Any:
    return _OF_ACTION.get(option.keywords.get("action", ""), "string")


def _read(config: pytest.Config, option: DeclaredOption, key: str) -> FromKey | None:
    """What the configuration says; None where it says nothing, or leaves the value empty."""
    origin = _origin(config, key)
    try:
        raw = config.getini(key)
    except (TypeError, ValueError, pytest.UsageError) as error:
        raise pytest.UsageError(f"{origin}: {error}; write {_WRITTEN[_ini_type(option)]}") from error
    if raw is None or raw in ("", []):
        return None
    if _ini_type(option) == "linelist":
        raw = [_converted(config, option, str(one), origin) for one in raw]  # TOML has numbers, too
    if _ini_type(option) != "string":
        return FromKey(option, raw, origin)
    if not isinstance(raw, str):
        raise pytest.UsageError(f"{origin}: {raw!r}; write {_WRITTEN['string']}")
    return FromKey(option, _converted(config, option, raw, origin), origin)


def _converted(config: pytest.Config, option: DeclaredOption, text: str, origin: str) -> Any:
    try:
        value = option.keywords.get("type", str)(text)
    except ArgumentTypeError as error:
        raise pytest.UsageError(f"{origin}: {error}") from error
    except ValueError as error:
        raise pytest.UsageError(f"{origin}: {text!r} must be a whole number") from error
    if option.file_pattern is not None and re.fullmatch(option.file_pattern, text) and not text.startswith("~"):
        return _from_here(config, text)
    return value


def _from_here(config: pytest.Config, path: str) -> str:
    """The path of a file that the configuration names, which lies where its own folder says, as seen from here."""
    folder = config.inipath.parent if config.inipath is not None else Path()
    return path if os.path.isabs(path) else os.path.relpath(folder / path)


def _origin(config: pytest.Config, key: str) -> str:
    overridden = [text.partition("=")[0] for text in config.known_args_namespace.override_ini or ()]
    if key in overridden or config.inipath is None:
        return f"{key} of --override-ini"
    return f"{key} in {os.path.relpath(config.inipath)}"
