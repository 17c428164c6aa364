"""What torch compiles in a run is set-up: the run is made again, and its steps are timed when nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.acceleration import Generate

_Result = TypeVar("_Result")

# Runs in which something may be compiled. What is compiled for one shape of a tensor is compiled once more for any
# shape, and that was enough for every method so far.
_MOST_RUNS = 5


class NeverSetUp(RuntimeError):
    """Torch compiles something in every run: no time is that of the steps alone."""


def settled(generate: Generate, run: Callable[[], _Result]) -> _Result:
    """Make a run of a generator, and make it again as long as torch compiles something in it.

    Args:
        generate: what makes it, and keeps what was compiled (:attr:`.Generate.set_up`).
        run: makes and times it.

    Returns:
        What the last run gives, in which nothing was compiled.

    Raises:
        NeverSetUp: when there is none.
    """
    first = generate.set_up
    for _ in range(_MOST_RUNS):
        before = generate.set_up
        result = run()
        if generate.set_up == before:
            return result
    compiled = generate.set_up - first
    raise NeverSetUp(
        f"torch compiled something in each of {_MOST_RUNS} runs ({compiled.graphs} graphs, {compiled.graph_breaks} "
        "graph breaks): the steps cannot be timed on compiled blocks; --stack eager times them uncompiled"
    )
