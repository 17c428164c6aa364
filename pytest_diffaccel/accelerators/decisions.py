"""What methods that decide by the picture have in common: how decisions are recorded, and how they are foreseen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

_Distances = TypeVar("_Distances")
_Said = TypeVar("_Said")
_Decide = TypeVar("_Decide", bound=Callable[..., Any])


def recorded(owner: Any, name: str, told: Callable[[bool], tuple[str, bool]]) -> Callable[[], Sequence[Sequence[bool]]]:
    """Let a library's object note each of its decisions, which stay what they are.

    Args:
        owner: what decides.
        name: of its method that does.
        told: from what that returns: what the denoiser call under way is for, and whether it reuses.

    Returns:
        What tells, after a generation, whether each denoiser call reused something, by step.
    """
    made: list[tuple[str, bool]] = []
    decide = getattr(owner, name)

    def noting(*args: Any, **options: Any) -> bool:
        decision: bool = decide(*args, **options)
        made.append(told(decision))
        return decision

    setattr(owner, name, uncompiled(noting))
    return lambda: by_step(made)


def foreseen(
    calls: Iterable[tuple[str, _Distances]], reuses: Callable[[_Distances, int], bool]
) -> Sequence[Sequence[bool]]:
    """Decisions by step, where the first call for each purpose computes.

    Args:
        calls: what each was for, and how far it lies from earlier ones for the same.
        reuses: whether one does whose last computed step was this.
    """
    last: dict[str, int] = {}
    steps: dict[str, int] = {}
    made = []
    for purpose, apart in calls:
        step = steps[purpose] = steps.get(purpose, -1) + 1
        again = step > 0 and reuses(apart, last[purpose])
        if not again:
            last[purpose] = step
        made.append((purpose, again))
    return by_step(made)


def by_step(calls: Iterable[tuple[str, _Said]]) -> Sequence[Sequence[_Said]]:
    """What is said of calls by step, from what each call was for: a step has one of each."""
    steps: list[dict[str, _Said]] = []
    for purpose, said in calls:
        if not steps or purpose in steps[-1]:
            steps.append({})
        steps[-1][purpose] = said
    return [list(step.values()) for step in steps]


def uncompiled(decide: _Decide) -> _Decide:
    """As a cache's own decision, which compiled blocks call as it is: it keeps what it is given."""
    import torch

    as_it_is: _Decide = torch.compiler.disable(decide)
    return as_it_is
