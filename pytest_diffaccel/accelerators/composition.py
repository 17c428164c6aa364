"""Accelerators: one method or several, applied together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pytest_diffaccel.accelerators.base import (
    COMPUTED,
    HALF_REUSED,
    REUSED,
    GridSize,
    InvalidParams,
    Method,
    PipelineCall,
)
from pytest_diffaccel.matrix import Cell, Params
from pytest_diffaccel.pipes import described, families_of

#: Kind of a step of the unaccelerated pipeline.
PLAIN = "plain"


@dataclass(frozen=True)
class Accelerator:
    """One or more methods applied together.

    Attributes:
        methods: in the order in which parameters are printed.
    """

    methods: tuple[Method, ...]

    @property
    def name(self) -> str:
        """``"DeepCache"``, ``"DeepCache and ToMe"``, ``"DeepCache, T-Gate, and ToMe"``."""
        names = self.method_names
        if len(names) > 2:
            return f"{', '.join(names[:-1])}, and {names[-1]}"
        return " and ".join(names)

    @property
    def method_names(self) -> list[str]:
        """Names of its methods."""
        return [method.name for method in self.methods]

    def suits(self, pipe: str) -> bool:
        """Whether its methods are for a pipe's kind of denoiser: on another there is nothing to search."""
        return all(method.denoiser in ("", described(pipe).denoiser) for method in self.methods)

    def grid(self, cell: Cell, *, coarse: bool) -> list[Params]:
        """All points: a method's own grid, or the product of coarser ones; none for a pipe that it does not suit."""
        if not self.suits(cell.pipe):
            return []
        sizes: Sequence[GridSize] = ("coarse", "coarse pair", "coarse triple") if coarse else ("full", "pair", "triple")
        size = sizes[min(len(self.methods), len(sizes)) - 1]
        grids = [method.grid(cell, size) for method in self.methods]
        return [dict(zip(self.method_names, row, strict=True)) for row in product(*grids)]

    def check(self, params: Params, steps: int) -> None:
        """Refuse parameters that mean nothing, whatever the pipeline.

        Raises:
            InvalidParams: naming the bad value and the valid ones.
        """
        for method in self.methods:
            method.check(params[method.name], steps)

    def check_pipeline(self, params: Params, pipeline: Any, height: int, width: int) -> None:
        """Refuse a pipeline that a method does not apply to, or that cannot take its parameters.

        Args:
            params: checked, by method.
            pipeline: the diffusers pipeline.
            height: of the images, pixels.
            width: of the images, pixels.

        Raises:
            InvalidParams: naming the method, and what is in its way or what to take instead.
        """
        for method in self.methods:
            if reason := method.applies_to(pipeline):
                raise InvalidParams(f"{method.name}: {reason}; leave it out")
            _check_taught(method, pipeline)
            if reason := method.misfit(params[method.name], pipeline, height, width):
                raise InvalidParams(f"{method.name}: {reason}")

    def check_guidance(self, guidance_scale: float, *, without: str) -> None:
        """Refuse a call without classifier-free guidance where a method needs it.

        Args:
            guidance_scale: of the call; up to 1 there is no guidance.
            without: why the pipeline has none at all, whatever the scale; empty where it has.

        Raises:
            InvalidParams: naming the method, and the scale or the setting that is the reason.
        """
        needing = [method.name for method in self.methods if method.needs_guidance]
        if not needing:
            return
        if without:
            raise InvalidParams(f"{needing[0]} needs classifier-free guidance, but {without}; leave {needing[0]} out")
        if guidance_scale <= 1:
            raise InvalidParams(
                f"{needing[0]} needs classifier-free guidance, but guidance_scale={guidance_scale:g} gives none; "
                f"take one above 1, or leave {needing[0]} out"
            )

    def kinds(self, params: Params, steps: int) -> tuple[str, ...]:
        """The kind of each denoiser call; ``"plain"`` without methods.

        Raises:
            ValueError: when a method names more or fewer calls than there are.
        """
        if not self.methods:
            return (PLAIN,) * steps
        parts = []
        for method in self.methods:
            restarts: frozenset[int] = frozenset()
            for driver in self._drivers(method):
                restarts |= driver.restarts(params[driver.name], steps)
            kinds = method.kinds(params[method.name], steps, restarts)
            if len(kinds) != steps:
                raise ValueError(f"{method.name}: `kinds` names {len(kinds)} denoiser calls of {steps}; name each")
            parts.append([f"{method.name}:{kind}" for kind in kinds])
        return tuple("|".join(kinds) for kinds in zip(*parts, strict=True))

    @property
    def deciding(self) -> Method | None:
        """The method that decides by the picture what a call reuses, which is alone then; None where none does."""
        return next((method for method in self.methods if method.extremes), None)

    @property
    def extremes(self) -> list[Params]:
        """Parameters of the deciding method with which it never reuses, then those with which it does at once."""
        return [{method.name: point} for method in self.methods for point in method.extremes]

    def decided_kinds(self, params: Params, decisions: Sequence[Sequence[bool]]) -> tuple[str, ...]:
        """The kind of each step, by whether each of its denoiser calls reused something: of the deciding method.

        Args:
            params: with which it decided.
            decisions: by step.
        """
        (method,) = self.methods
        kinds = [REUSED if all(step) else HALF_REUSED if any(step) else COMPUTED for step in decisions]
        return tuple(f"{self.name}:{method.decided_kind(params[self.name], kind)}" for kind in kinds)

    def counters(self, params: Params, steps: int) -> frozenset[str]:
        """The counters that must not stay zero in a run of these parameters."""
        return frozenset().union(*(method.counters(params[method.name], steps) for method in self.methods))

    def without(self, method: Method) -> Accelerator:
        """The others of its methods."""
        return Accelerator(tuple(other for other in self.methods if other is not method))

    def apply(self, pipeline: Any, call: PipelineCall, params: Params) -> PipelineCall:
        """Apply every method, a driven one by its driver; returns what generates. Nothing is undone here.

        Raises:
            InvalidParams: when a method has not learnt what it must know of the pipeline.
        """
        # A driver installs the call that knows how to run those it drives, so it goes last.
        for method in sorted(self.methods, key=lambda method: bool(method.drives)):
            _check_taught(method, pipeline)
            if not self._drivers(method):
                call = method.apply(pipeline, call, params)
        return call

    def _drivers(self, method: Method) -> list[Method]:
        return [other for other in self.methods if method.name in other.drives]


def _check_taught(method: Method, pipeline: Any) -> None:
    """Refuse a method that has not learnt what it must know of a pipeline: it would do something, silently wrong."""
    families = families_of(pipeline)
    lacking = method.lacks(families[0]) if families else ""
    if lacking:
        raise InvalidParams(
            f"{method.name}: of a {type(pipeline).__name__} it is not known {lacking}; give what a search has learnt, "
            "which golden/environments.json keeps, or what an unaccelerated generation tells: accelerate(..., "
            "learnt=generate.learn(prompts, seeds)), with the `generate` of accelerate(pipeline, {}, ...)"
        )
