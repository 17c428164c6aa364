"""What a process spends its time on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Spent:
    """Seconds by what they went to.

    Attributes:
        seconds: so far, by name.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Note the block's time as spent on something; within such a block, only what is named innermost counts."""
        began, before = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - began - (sum(self.seconds.values()) - before)
