"""Cells, candidates and their order: what a search could measure, without measuring anything.

Pure Python: pytest's collection runs through here on every worker, so nothing heavy is imported and every
sequence has one fixed order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, TypeAlias

from pytest_diffaccel.pipes import BUILT_IN, PipeSpec

#: The matrix of 27 cells that is searched where none are named.
PIPES = tuple(spec.name for spec in BUILT_IN if spec.is_in_matrix)
SCHEDULERS = PipeSpec.schedulers
STEPS = PipeSpec.steps
TARGETS = (1.2, 1.5, 1.8, 2.0, 2.5, 3.0, 4.0)

Number: TypeAlias = int | float
#: Parameters by method, as the libraries name them: ``{"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}}``.
Params: TypeAlias = Mapping[str, Mapping[str, Number]]
#: One point of a method's own grid.
Point: TypeAlias = Mapping[str, Number]
#: What a method learns of a pipe in a cell before it is applied there, in numbers: what they mean is its own matter.
Lesson: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One pipe x scheduler x number of denoising steps.

    Attributes:
        pipe: the name of a pipe (:mod:`pytest_diffaccel.pipes`).
        scheduler: a name of :data:`SCHEDULERS`, or a diffusers scheduler's class name.
        steps: denoising steps of the unaccelerated pipeline, at least 1.
    """

    pipe: str
    scheduler: str
    steps: int

    def __str__(self) -> str:
        return f"{self.pipe}-{self.scheduler}-{self.steps}"

    @property
    def in_words(self) -> str:
        """``SD1.5 DDIM 20 steps``."""
        return f"{self.pipe} {self.scheduler} {self.steps} steps"


class Group(NamedTuple):
    """A cell and an accelerator: its candidates are one search.

    Attributes:
        cell: where.
        accelerator: the accelerator's name.
    """

    cell: Cell
    accelerator: str

    @property
    def name(self) -> str:
        """``"SD1.5-DDIM-20-DeepCache+ToMe"``: for ids and file names."""
        return f"{self.cell}-{slug(self.accelerator)}"


@dataclass(frozen=True)
class Candidate:
    """A cell, an accelerator and one point of its parameter grid: one pytest case.

    Attributes:
        cell: where it is measured.
        accelerator: the accelerator's name, for example ``"DeepCache and ToMe"``.
        params: its parameters by method, NumPy's numbers as Python's; never changed after construction.
    """

    cell: Cell
    accelerator: str
    params: Params

    def __post_init__(self) -> None:
        if any(hasattr(value, "item") for point in self.params.values() for value in point.values()):
            plain = {
                method: {name: value.item() if hasattr(value, "item") else value for name, value in point.items()}
                for method, point in self.params.items()
            }
            object.__setattr__(self, "params", plain)

    @cached_property
    def key(self) -> str:
        """Canonical name, unique in the matrix, the same in every process; never a pytest node id."""
        return f"{self.group.name}-{format_params(self.params)}"

    @property
    def group(self) -> Group:
        """The group that it is in."""
        return Group(self.cell, self.accelerator)

    def __hash__(self) -> int:
        return hash(self.key)


class Grid(Protocol):
    """What the matrix needs to know of an accelerator."""

    @property
    def name(self) -> str:
        """The accelerator's name as tasks and golden keys spell it."""

    def suits(self, pipe: str) -> bool:
        """Whether it is for a pipe's kind of denoiser."""

    def grid(self, cell: Cell, *, coarse: bool) -> Sequence[Params]:
        """All valid parameter points for ``cell``, in a fixed order; none for a pipe that it does not suit."""


def slug(accelerator: str) -> str:
    """Name without spaces and commas, for ids and file names: ``"DeepCache+T-Gate+ToMe"``."""
    return re.sub(r",? and |, ", "+", accelerator)


def format_params(params: Params) -> str:
    """``"cache_interval=3,cache_branch_id=0"``: parameters of all methods in order, which share no names."""
    return ",".join(f"{name}={value}" for point in params.values() for name, value in point.items())


def spaced_params(params: Params) -> str:
    """The same for people, in a line that breaks between parameters."""
    return format_params(params).replace(",", ", ")


def cells(pipes: Iterable[str], schedulers: Iterable[str], steps: Iterable[int]) -> list[Cell]:
    """All cells of the product, pipe first, in the order given."""
    scheduler_names, step_counts = list(schedulers), list(steps)
    return [Cell(pipe, name, count) for pipe in pipes for name in scheduler_names for count in step_counts]


def groups(cells: Sequence[Cell], accelerators: Sequence[Grid]) -> list[Group]:
    """All groups, cell first: of each cell those of the accelerators that suit its pipe."""
    return [Group(cell, one.name) for cell in cells for one in accelerators if one.suits(cell.pipe)]


def candidates(cells: Sequence[Cell], accelerators: Sequence[Grid], *, coarse: bool = False) -> Iterator[Candidate]:
    """Every candidate of the matrix, group by group, each group in its grid's order."""
    for cell in cells:
        for accelerator in accelerators:
            for params in accelerator.grid(cell, coarse=coarse):
                yield Candidate(cell, accelerator.name, params)
