"""How options are declared: what argparse is told of one, and the types of their values."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_diffaccel.words import meant

# Compiled when it is first used: compiling is a tenth of what importing the plugin takes.
_DURATION = r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?"

# How much of two options' spellings must be alike (difflib's ratio): --model is near --models, and --cov not --code.
# What is nearly the same goes before what has its words: --model is --models rather than --clip-model.
_ALIKE, _NEARLY_THE_SAME = 0.8, 0.9


class OptionError(ValueError):
    """A bad option value; the message names it and lists the valid ones."""


@dataclass(frozen=True)
class DeclaredOption:
    """One option as argparse declares it.

    Attributes:
        names: its spellings; the first names it in the parsed options.
        keywords: what argparse is told.
        one_off: whether it is a matter of one run; any other can be set in a project's configuration, too.
        file_pattern: the values that name a file; a configuration's are relative to its own folder. A group is the
            file's own part.
        when: whether a configuration's value counts beside what the command line says.
    """

    names: tuple[str, ...]
    keywords: Mapping[str, Any]
    one_off: bool = False
    file_pattern: str | None = None
    when: Callable[[Namespace], bool] = lambda given: True

    @property
    def dest(self) -> str:
        """Its name in the parsed options."""
        return self.names[0].lstrip("-").replace("-", "_")

    @property
    def default(self) -> Any:
        """Its value when it is not given."""
        return self.keywords.get("default", False if self.keywords.get("action") == "store_true" else None)

    @property
    def key(self) -> str | None:
        """Its key in a project's configuration; None for a matter of one run."""
        return None if self.one_off else f"diffaccel_{self.dest}"


def option(
    *names: str,
    one_off: bool = False,
    file_pattern: str | None = None,
    when: Callable[[Namespace], bool] = lambda given: True,
    **keywords: Any,
) -> DeclaredOption:
    """Declare an option."""
    return DeclaredOption(names, keywords, one_off, file_pattern, when)


def of_one_run(*names: str, **keywords: Any) -> DeclaredOption:
    """Declare an option that is a matter of one run, and so no key of a project's configuration."""
    return option(*names, one_off=True, **keywords)


def near_options(name: str, known: Sequence[str]) -> str:
    """The same for an option such as ``--targets``, which is a part of ``--search-targets``; empty for a known one."""
    if name in known or not name.startswith("--"):
        return ""
    from difflib import get_close_matches

    words = set(re.split("[-_]+", name))
    near = get_close_matches(name, known, 1, _NEARLY_THE_SAME)
    near = near or [other for other in known if words <= set(other.split("-"))]
    near = near or get_close_matches(name, known, 1, _ALIKE)
    near = near or [other for other in known if name.startswith(other)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def one_of(*names: str) -> Callable[[str], str]:
    """The type of an option that takes one of a few names; another is refused, with the one that may be meant."""

    def read(text: str) -> str:
        if text not in names:
            near = meant(text, {name: name for name in names})
            raise ArgumentTypeError(f"{text!r} is unknown{near}; choose from {', '.join(names)}")
        return text

    return read


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = number(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def share(text: str) -> float:
    """A fraction between 0 and 1, both excluded: ``"3%"`` or ``"0.03"``."""
    value = number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value < 1:
        raise ArgumentTypeError(f"{text!r} must be a share between 0 and 100%, such as 3% or 0.03")
    return value


def metric_share(text: str) -> tuple[str, float]:
    """A metric's name and a fraction of it as :func:`share` reads one: ``"psnr=3%"``; the name is empty in ``"3%"``."""
    name, equals, part = (one.strip() for one in text.rpartition("="))
    try:
        if equals and not name:
            raise ArgumentTypeError("no metric")
        return name, share(part)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(
            f"{text!r} must be a share between 0 and 100%, such as 5%, or a metric and one, such as psnr=3%"
        ) from error


def duration(text: str) -> float:
    """Seconds of ``"30min"``, ``"2h"``, ``"1h30min"``, ``"90s"``."""
    found = re.fullmatch(_DURATION, text.replace(" ", ""))
    hours, minutes, seconds = (float(part or 0) for part in (found.groups() if found else ("0", "0", "0")))
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ArgumentTypeError(f"{text!r} must be a duration such as 30min, 2h, 1h30min or 90s")
    return total


def spelled(seconds: float) -> str:
    """A time to the second as it was asked for, in the largest unit of which it is a whole number: ``"90 s"``."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"


def number(text: str) -> float:
    """A number; NaN, which no range holds, for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan
