"""What is known without a model: a harsher point of a method is faster and loses more.

So where an evaluated candidate reaches a target, a harsher one has no business there. That this holds is not taken on
trust: a random few of those that it rules out are evaluated all the same, and in a group where some pair contradicts
it, it rules out nothing (among combinations of three methods on one of the recorded tables a fifth of the pairs did).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.matrix import Candidate

# One in so many of those that are ruled out is evaluated.
_CHECKED_ONE_IN = 20
# A harsher candidate that loses less than this share of the gentler one's loss contradicts; chance alone does not.
_CONTRADICTION = 0.8


class Monotone:
    """The evaluated candidates of a group, by how harsh they are.

    Args:
        accelerator: the group's.
        candidates: those evaluated.
        losses: their mean LPIPS on the same samples, in the same order.
    """

    def __init__(self, accelerator: Accelerator, candidates: Sequence[Candidate], losses: Sequence[float]) -> None:
        self._accelerator = accelerator
        self._candidates = candidates
        self._losses = np.array(losses)
        places = [_place(accelerator, one) for one in candidates]
        self._rest = np.array([rest for rest, _ in places])
        self._harshness = np.array([harshness for _, harshness in places])

    @cached_property
    def holds(self) -> bool:
        """Whether no harsher candidate loses much less than a gentler one."""
        return not any(
            np.any(self._losses[place] < _CONTRADICTION * self._losses[self._gentler(one)])
            for place, one in enumerate(self._candidates)
        )

    def gentler(self, candidate: Candidate) -> list[Candidate]:
        """Those that do the same with every method, or less: at least one of them less, and none more."""
        return [self._candidates[int(place)] for place in np.flatnonzero(self._gentler(candidate))]

    def _gentler(self, candidate: Candidate) -> NDArray[np.bool_]:
        if not self._candidates:
            return np.zeros(0, dtype=bool)
        rest, harshness = _place(self._accelerator, candidate)
        no_more, less = self._harshness <= harshness, self._harshness < harshness
        found: NDArray[np.bool_] = (self._rest == rest) & no_more.all(axis=1) & less.any(axis=1)
        return found


def is_checked(candidate: Candidate) -> bool:
    """Whether it is among the random few that are evaluated though they are ruled out: the same ones in every run."""
    return zlib.crc32(candidate.key.encode()) % _CHECKED_ONE_IN == 0


@lru_cache(maxsize=1 << 16)
def _place(accelerator: Accelerator, candidate: Candidate) -> tuple[str, tuple[float, ...]]:
    """What cannot be ordered of a candidate, and what can: larger is harsher."""
    ordered = {method.name: method.harshness(candidate.params[method.name]) for method in accelerator.methods}
    rest = {name: dict(candidate.params[name]) for name, harshness in ordered.items() if not harshness}
    return repr(rest), tuple(value for harshness in ordered.values() for value in harshness)
