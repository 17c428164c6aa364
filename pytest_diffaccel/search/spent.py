"""What a process spends its time on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nobody(_: str) -> None:
    """Nobody is told."""


class Spent:
    """Seconds by what they went to.

    Attributes:
        seconds: so far, by name.
        on_begin: told what it begins to spend time on, and now and then that it still does.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.on_begin: Callable[[str], None] = _nobody

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Note the block's time as spent on something; within such a block, only what is named innermost counts."""
        self.on_begin(name)
        began, before = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - began - (sum(self.seconds.values()) - before)
