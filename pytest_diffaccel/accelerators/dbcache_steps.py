"""Which steps DBCache may reuse, whatever the picture: its warm-up and its limit, or one of cache-dit's masks.

A *mask* says of each step whether it is computed. These are the four that ``cache_dit.steps_mask`` makes for a number
of steps, told to cache-dit with the policy "static": the mask alone decides. Its warm-up is cut to the steps that the
mask computes first, and its limit and threshold are not asked (cache-dit 1.5.3, ``CachedContext.warmup_steps`` and
``CachedContextManager.can_cache``). They are made here, too: spaces, records and scripts need them where cache-dit is
not installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from typing import TypeAlias

from pytest_diffaccel.matrix import Number, Point

#: ``mask_policy`` of the masks 1 to 4.
MASK_POLICIES = ("slow", "medium", "fast", "ultra")
#: What the others are where a mask decides: nothing more is asked of a step.
BESIDE_A_MASK: Mapping[str, Number] = {
    "max_warmup_steps": 0,
    "max_continuous_cached_steps": -1,
    "residual_diff_threshold": 1,
}
# Lengths of the runs of computed steps and of the runs of reused ones between them.
_Runs: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
# By the steps that they are for, in the order of the policies; cut to fewer, from 28 stretched to more.
_RUNS: Mapping[int, tuple[_Runs, _Runs, _Runs, _Runs]] = {
    28: (
        ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
        ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
        ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
        ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
    ),
    15: (
        ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
        ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
        ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
        ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
    ),
    9: (((5, 2, 1), (1,)), ((5, 1, 1), (1, 1)), ((4, 1, 1), (1, 2)), ((3, 1, 1), (2, 2))),
    8: (((5, 1, 1), (1,)), ((4, 1, 1), (1, 1)), ((3, 1, 1), (1, 2)), ((2, 1, 1), (2, 2))),
    6: (((3, 1), (2,)),) * 4,
    4: (((2, 1), (1,)),) * 4,
}


def has_masks(steps: int) -> bool:
    """Whether cache-dit has masks of so many steps: of 4, of 6, and from 8 on; of 4 and 6 the four are one."""
    return steps in (4, 6) or steps >= 8


@lru_cache(maxsize=1024)
def steps_mask(number: int, steps: int) -> tuple[int, ...]:
    """As ``cache_dit.steps_mask`` makes it: 1 where a step is computed, the first and the last among them.

    Args:
        number: of the mask, from 1; each computes less than the one before.
        steps: of which there are masks (:func:`has_masks`).
    """
    longest = next((known for known in sorted(_RUNS) if known >= steps), max(_RUNS))
    computed, reused = (list(runs) for runs in _RUNS[longest][number - 1])
    _stretch(computed, reused, steps)
    _cut(computed, reused, steps)
    runs: list[tuple[int, int]] = list(zip_longest(computed, reused, fillvalue=0))
    mask = list(chain.from_iterable([1] * ones + [0] * zeros for ones, zeros in runs))
    return (*mask[: steps - 1], 1)


def _stretch(computed: list[int], reused: list[int], steps: int) -> None:
    """Lengthen runs, the first ones first, by about half of what their share of so many steps asks for."""
    own = tuple(computed), tuple(reused)
    share = (steps / max(_RUNS)) * 0.5
    while sum(computed) + sum(reused) < steps:
        for place in range(len(reused)):
            for runs, lengths in zip((computed, reused), own, strict=True):
                runs[place] += max(int(lengths[place] * share), 1)
                if sum(computed) + sum(reused) >= steps:
                    return
        computed[-1] += 1


def _cut(computed: list[int], reused: list[int], steps: int) -> None:
    """Shorten the last runs, reused and computed ones in turn."""
    while True:
        for runs in (reused, computed):
            if sum(computed) + sum(reused) <= steps:
                return
            if runs:
                runs[-1] -= 1
                if not runs[-1]:
                    runs.pop()


def mask_number(mask: Sequence[int]) -> int:
    """Which of the masks of its length this is; 0: none of them."""
    steps = len(mask)
    numbers = range(1, len(MASK_POLICIES) + 1) if has_masks(steps) else ()
    return next((number for number in numbers if steps_mask(number, steps) == tuple(mask)), 0)


def may_reuse(point: Point, step: int, steps: int, reused: int) -> bool:
    """Whether a step after the first may be reused, where ``reused`` steps before it were, one after the other."""
    if number := int(point["steps_mask"]):
        return not steps_mask(number, steps)[step]
    most = point["max_continuous_cached_steps"]
    return step >= point["max_warmup_steps"] and (most < 0 or reused < most) and point["residual_diff_threshold"] > 0


def reusable(point: Point, steps: int) -> list[bool]:
    """Whether each step is reused where every residual is near enough."""
    found: list[bool] = []
    reused = 0
    for step in range(steps):
        may = step > 0 and may_reuse(point, step, steps, reused)
        reused = reused + 1 if may else 0
        found.append(may)
    return found


def computed_first(point: Point, steps: int) -> int:
    """How many steps are computed before the first that may be reused."""
    number = int(point["steps_mask"])
    return steps_mask(number, steps).index(0) if number else int(point["max_warmup_steps"])
