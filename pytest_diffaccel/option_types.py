"""How options are declared: what argparse is told of one, and the types of their values."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Compiled when it is first used: compiling is a tenth of what importing the plugin takes.
_DURATION = r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?"


class OptionError(ValueError):
    """A bad option value; the message names it and lists the valid ones."""


@dataclass(frozen=True)
class Option:
    """One option as argparse declares it.

    Attributes:
        names: its spellings; the first names it in the parsed options.
        keywords: what argparse is told.
    """

    names: tuple[str, ...]
    keywords: Mapping[str, Any]

    @property
    def dest(self) -> str:
        """Its name in the parsed options."""
        return self.names[0].lstrip("-").replace("-", "_")

    @property
    def default(self) -> Any:
        """Its value when it is not given."""
        return self.keywords.get("default", False if self.keywords.get("action") == "store_true" else None)


def option(*names: str, **keywords: Any) -> Option:
    """Declare an option."""
    return Option(names, keywords)


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


def duration(text: str) -> float:
    """Seconds of ``"30min"``, ``"2h"``, ``"1h30min"``, ``"90s"``."""
    found = re.fullmatch(_DURATION, text.replace(" ", ""))
    hours, minutes, seconds = (float(part or 0) for part in (found.groups() if found else ("0", "0", "0")))
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ArgumentTypeError(f"{text!r} must be a duration such as 30min, 2h, 1h30min or 90s")
    return total


def number(text: str) -> float:
    """A number; NaN, which no range holds, for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan
