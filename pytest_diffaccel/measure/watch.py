"""What watches a part of a machine while something is timed on it, and the clock that it should keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# A clock this far below the highest seen makes runs slower by as much; boost clocks move by less of their own accord.
_CLOCK_RATIO = 0.85


class Watch(Protocol):
    """Watches one part of a machine."""

    def begin(self) -> Callable[[], str]:
        """Begin to watch a block; call what is returned at its end: it says in words what disturbed it, or nothing."""


@dataclass
class ClockRecord:
    """The highest clock seen, against which a lower one stands out.

    Attributes:
        name: what is clocked, for the message.
        highest_mhz: the highest seen so far, MHz.
    """

    name: str
    highest_mhz: float = 0.0

    def slowed(self, mhz: float) -> str:
        """Take a reading, MHz; in words, how far it fell below the highest one, or nothing."""
        self.highest_mhz = max(self.highest_mhz, mhz)
        if not 0 < mhz < _CLOCK_RATIO * self.highest_mhz:
            return ""
        return f"the {self.name} clock fell from {self.highest_mhz:.0f} to {mhz:.0f} MHz"
