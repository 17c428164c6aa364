"""What a method of acceleration must say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from pytest_diffaccel.accelerators.counters import Tally
from pytest_diffaccel.matrix import Cell, Lesson, Params, Point
from pytest_diffaccel.pipes import PipeSpec

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

#: How wide a grid is asked for. ``pair`` and ``triple`` are a method's share in a combination's product.
GridSize: TypeAlias = Literal["full", "pair", "triple", "coarse", "coarse pair", "coarse triple"]
#: What generates images: a diffusers pipeline's ``__call__`` or what a method replaces it with.
PipelineCall: TypeAlias = Callable[..., Any]
#: Kinds of a deciding method's steps: where guidance is a second call, one of the two may reuse and the other not.
COMPUTED, HALF_REUSED, REUSED = "computed", "half reused", "reused"


class InvalidParams(ValueError):
    """Parameters that no run could use: unknown, missing or out of range. The message names the fix."""


class Foresight(Protocol):
    """What an unaccelerated generation told of a deciding method's decisions in accelerated ones."""

    def watching(self, pipeline: Any) -> AbstractContextManager[None]:
        """Look on while the pipeline, with the method applied so that it reuses nothing, generates."""

    def decisions(self, point: Point) -> Sequence[Sequence[bool]]:
        """Whether each denoiser call with ``point`` would reuse something, by step."""


class Learning(Protocol):
    """What a method learns of a pipeline from an unaccelerated generation."""

    def watching(self, pipeline: Any) -> AbstractContextManager[None]:
        """Look on while the pipeline generates, and change nothing of what it draws."""

    def lesson(self, steps: int) -> Lesson:
        """What was seen in ``steps`` denoising steps: finite numbers.

        Raises:
            ValueError: when that is nothing that the method could use.
        """


class Method(ABC):
    """One acceleration method; ``docs/own_method.md`` shows how one is written.

    Attributes:
        name: as golden parameters spell it.
        param_names: its parameters, in the order they are printed.
        denoiser: the component that a pipe's steps must call for it to be searched there, ``"unet"`` or
            ``"transformer"``; empty: any.
        counted: its counters, which :meth:`watch` moves. Of a method without any, every first generation is repeated
            without it, up to the first denoiser call that gives something else: there must be one.
        template: the Jinja2 file of its block in generated scripts; None: it has none, and no script is generated.
        drives: other methods that this one must apply itself when combined with them.
        needs_guidance: whether it works with classifier-free guidance only.
        extremes: of a *deciding* method, which looks at the picture in each denoiser call and then decides whether to
            reuse something: a point with which it never does, and those with which it does as soon as it can, whatever
            the picture, which together show every kind of step that its grid has. Empty for all others, whose
            parameters alone say what a call does.
        lesson: what the method has learnt of the pipe in the cell that it is used in (:meth:`taught`); None: nothing.
    """

    name: ClassVar[str]
    param_names: ClassVar[tuple[str, ...]]
    denoiser: ClassVar[str] = ""
    counted: ClassVar[tuple[str, ...]] = ()
    template: ClassVar[Path | None] = None
    drives: ClassVar[tuple[str, ...]] = ()
    needs_guidance: ClassVar[bool] = False
    extremes: ClassVar[tuple[Point, ...]] = ()
    lesson: Lesson | None = None

    @abstractmethod
    def grid(self, cell: Cell, size: GridSize) -> Sequence[Point]:
        """Valid points for ``cell``, sorted, the same in every process."""

    def space(self, cell: Cell) -> Sequence[Point]:
        """Every point that could be worth its while in ``cell``, each sequence of calls once, sorted.

        Wider than any grid; a search draws on it lazily. A method that does not say otherwise has its full grid.
        """
        return self.grid(cell, "full")

    @abstractmethod
    def check(self, point: Point, steps: int) -> None:
        """Refuse a point that means nothing, whatever the pipeline.

        Args:
            point: all of :attr:`param_names`.
            steps: denoising steps of the run.

        Raises:
            InvalidParams: naming the bad value and the valid range.
        """

    def applies_to(self, pipeline: Any) -> str:
        """Why the method can do nothing with this pipeline, whatever its parameters; empty where it can.

        Asked before anything is measured: the reason, a clause such as ``"this UNet has no mid block"``, is that of
        the candidates that a search leaves out. A method that does not say otherwise applies everywhere.

        Args:
            pipeline: the diffusers pipeline.
        """
        return ""

    def misfit(self, point: Point, pipeline: Any, height: int, width: int) -> str:
        """Why a pipeline that the method applies to cannot take ``point``; empty where it can, as most can.

        Args:
            point: all of :attr:`param_names`, checked.
            pipeline: the diffusers pipeline.
            height: of the images, pixels.
            width: of the images, pixels.
        """
        return ""

    def watch(self, denoiser: Any, tally: Tally) -> Iterable[RemovableHandle]:
        """Put hooks on the denoiser that count (:meth:`.Tally.add`) what the method is there to save, and give them.

        They count whatever is applied, so they belong where only real work comes by: inside of what the method
        replaces. They are asked of pipelines only that the method applies to.

        Args:
            denoiser: the pipeline's, with all methods applied.
            tally: where the counts of :attr:`counted` go.
        """
        return ()

    def counters(self, point: Point, steps: int) -> frozenset[str]:
        """Those of :attr:`counted` that must not stay zero with ``point``; all, if a method does not say otherwise.

        None for an identity setting.
        """
        return frozenset(self.counted)

    @abstractmethod
    def kinds(self, point: Point, steps: int, restarts: frozenset[int]) -> list[str]:
        """The kind of each of ``steps`` denoiser calls; calls of one kind cost the same.

        A deciding method names :data:`COMPUTED` and :data:`REUSED`, or what :meth:`decided_kind` makes of them, and
        reuses as soon as it can, unless it never does.

        Args:
            point: the method's parameters.
            steps: denoising steps of the run.
            restarts: steps at which another method makes this one begin anew.
        """

    def decided_kind(self, point: Point, kind: str) -> str:
        """Of a deciding method: the kind that a step is with ``point``, where it is computed, half reused or reused.

        ``kind`` itself, where all points save as much in a step.
        """
        return kind

    def decides(self, point: Point) -> bool:
        """Whether the picture decides what ``point`` reuses: of a deciding method, all but its :attr:`extremes`.

        Of other points :meth:`kinds` are what runs, whatever the picture.
        """
        return bool(self.extremes) and point not in self.extremes

    def decisions(self, denoiser: Any) -> Callable[[], Sequence[Sequence[bool]]]:
        """Of a deciding method: what tells, after a generation, whether each denoiser call reused something, by step.

        Args:
            denoiser: the pipeline's, with the method applied.

        Raises:
            NotImplementedError: for a method that decides nothing.
        """
        raise NotImplementedError(f"{self.name} decides nothing by the picture")

    def foresight(self) -> Foresight:
        """Of a deciding method: what foresees its decisions, once it has looked on.

        Raises:
            NotImplementedError: for a method that decides nothing.
        """
        raise NotImplementedError(f"{self.name} decides nothing by the picture")

    def learns(self, pipe: PipeSpec) -> str:
        """What the method must have learnt of a pipe before it is applied, as a clause; empty where nothing.

        ``"how its residuals grow from step to step"``. It is learnt once per environment, scheduler and number of
        steps, and kept with the environment. Until then, :meth:`grid` gives all points that could differ; the grid of a
        method that has its :attr:`lesson` is a part of that. A method that does not say otherwise learns nothing.

        Args:
            pipe: the pipe, as it is known before anything is loaded.
        """
        return ""

    def lacks(self, pipe: PipeSpec) -> str:
        """What the method :meth:`learns` of a pipe and does not know; empty where it knows all that it needs."""
        return "" if self.lesson is not None else self.learns(pipe)

    def learning(self) -> Learning:
        """Of a method that learns: what looks on.

        Raises:
            NotImplementedError: for a method that learns nothing.
        """
        raise NotImplementedError(f"{self.name} learns nothing")

    def taught(self, lesson: Lesson) -> Method:
        """The same method, with what it has learnt as its :attr:`lesson`."""
        made = copy(self)
        made.lesson = lesson
        return made

    def features(self, kind: str) -> Mapping[str, float]:
        """What the logarithm of the cost of a step of ``kind`` is linear in, about 0 to 1 each.

        Kinds that share a feature tell of each other's cost. A method that does not say otherwise has kinds of which
        none tells of another.
        """
        return {kind: 1.0}

    def coordinates(self, point: Point, cell: Cell) -> tuple[float, ...]:
        """Where ``point`` lies for a model of its loss: near points lose alike, and 0.3 is a difference.

        Every coordinate grows with what the method saves, from 0 (nothing) to about 1. A method that does not say
        otherwise has its parameters, scaled to the range that they have in its space.
        """
        space = self.space(cell)
        ranges = [
            (min(point[name] for point in space), max(point[name] for point in space)) for name in self.param_names
        ]
        return tuple(
            (point[name] - low) / (high - low) if high > low else 0.0
            for name, (low, high) in zip(self.param_names, ranges, strict=True)
        )

    def decided_coordinates(self, point: Point, cell: Cell, share: float) -> tuple[float, ...]:
        """Of a deciding method: :meth:`coordinates` of ``point`` where a share of the steps is reused, all 0 at 0.

        The share alone, if a method does not say otherwise: points that reuse as much lose as much.

        Args:
            point: all of :attr:`param_names`.
            cell: where it lies.
            share: of the steps, 0 to 1.
        """
        return (share,)

    def restarts(self, point: Point, steps: int) -> frozenset[int]:
        """Steps at which this method, combined with those it drives, makes them begin anew."""
        return frozenset()

    @abstractmethod
    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Patch ``pipeline`` and return what is to be called in place of ``call``.

        Undoing is not the method's business: :func:`.restoration.restored` puts everything back, also after an
        exception half way through.

        Args:
            pipeline: the diffusers pipeline.
            call: what generates so far.
            params: the parameters of all methods of the accelerator.
        """

    def check_names(self, point: Point) -> None:
        """Refuse unknown and missing parameter names.

        Raises:
            InvalidParams: naming them and the known ones.
        """
        unknown = sorted(map(str, set(point) - set(self.param_names)))
        missing = [name for name in self.param_names if name not in point]
        if unknown or missing:
            said = "; ".join(
                f"{word} {', '.join(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names
            )
            raise InvalidParams(f"{self.name}: {said} (its parameters are {', '.join(self.param_names)})")


def check_integer(method: str, point: Point, name: str, low: int, high: int | None = None) -> int:
    """The integer parameter ``name`` if it lies in ``[low, high]`` (``high`` None: unbounded).

    Raises:
        InvalidParams: naming the value and the range.
    """
    value = point[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        raise InvalidParams(f"{method}: {name}={value!r} must be a whole number from {low}{upper}")
    return value


def points(names: Sequence[str], rows: Iterable[Sequence[int | float]]) -> list[Mapping[str, int | float]]:
    """Rows of values as points with the given parameter names."""
    return [dict(zip(names, row, strict=True)) for row in rows]
