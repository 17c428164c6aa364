"""What a preset gives for a setting, and how one that cannot be measured is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Given:
    """What a preset gives for a setting.

    Attributes:
        text: as it stands there.
        value: what that is; None where it is no literal.
        is_literal: whether it is one: a number, a text, a list of them.
    """

    text: str
    value: Any = None
    is_literal: bool = False


class PresetError(ValueError):
    """A file is no preset that can be measured. The message says what it holds and where."""
