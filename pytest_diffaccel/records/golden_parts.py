"""The parts of a golden entry that are records of their own, and how figures are rounded and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from pytest_diffaccel.matrix import Params, spaced_params
from pytest_diffaccel.measure.measurement import MetricFigures

#: Digits kept: far below what a measurement can tell, few enough to read a diff.
SPEEDUP_DECIMALS = 4
LPIPS_DECIMALS = 6
# Of metrics whose scale is their own, digits that count; and decimals of a change, which is a share.
_METRIC_DIGITS, _CHANGE_DECIMALS = 6, 6

Range: TypeAlias = tuple[float, float]


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class FewerSteps:
    """The unaccelerated pipeline with fewer steps, as fast as an accelerator: the rival that it has to beat.

    Attributes:
        steps: how many steps are as fast.
        speedup: of those steps.
        lpips: mean LPIPS against the images of all steps, on the winner's samples or the first of them.
        lpips_ci95: its interval.
        quality: mean of the metric that decided, where that is not LPIPS.
        quality_ci95: its interval; None of a single picture.
        num_samples: how many of the winner's samples showed that it loses more; None: it was scored on all.
    """

    steps: Annotated[int, Field(ge=1)]
    speedup: Annotated[float, Field(ge=0)]
    lpips: float
    lpips_ci95: Range
    quality: float | None = None
    quality_ci95: Range | None = None
    num_samples: Annotated[int, Field(ge=1)] | None = None

    def rounded(self) -> FewerSteps:
        """As the file keeps it."""
        return replace(
            self,
            speedup=round(self.speedup, SPEEDUP_DECIMALS),
            lpips=round(self.lpips, LPIPS_DECIMALS) + 0.0,
            lpips_ci95=(
                round(self.lpips_ci95[0], LPIPS_DECIMALS) + 0.0,
                round(self.lpips_ci95[1], LPIPS_DECIMALS) + 0.0,
            ),
            quality=significant(self.quality),
            quality_ci95=_significant_range(self.quality_ci95),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON types, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class GoldenMetric:
    """A secondary metric of a winner's pictures.

    Attributes:
        value: their mean.
        ci95: its interval; None of a single picture.
        change: from the unaccelerated pictures', as a share of their mean; None of a metric that compares with them
            itself, and where it cannot be told.
        change_ci95: its interval.
    """

    value: float
    ci95: Range | None = None
    change: float | None = None
    change_ci95: Range | None = None

    def __post_init__(self) -> None:
        if (self.change is None) != (self.change_ci95 is None):
            raise ValueError("change and change_ci95 go together")
        for value, ends in ((self.value, self.ci95), (self.change, self.change_ci95)):
            if value is not None and ends is not None and not ends[0] <= value <= ends[1]:
                raise ValueError(f"{value} lies outside its own interval {list(ends)}")

    @classmethod
    def of(cls, figures: MetricFigures) -> GoldenMetric:
        """What is recorded of a metric's figures."""
        known, change = cls(figures.value, figures.ci95), figures.change
        return replace(known, change=change.value, change_ci95=(change.low, change.high)) if change else known

    def rounded(self) -> GoldenMetric:
        """As the file keeps it."""
        return GoldenMetric(
            value=_significant(self.value),
            ci95=_significant_range(self.ci95),
            change=rounded_to(self.change, _CHANGE_DECIMALS),
            change_ci95=round_range(self.change_ci95, _CHANGE_DECIMALS),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON types, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def param_changes(before: Params, after: Params) -> list[str]:
    """Parameters that have another value; both settings as a whole where they have not the same parameters."""
    if before == after:
        return []
    if {name: point.keys() for name, point in before.items()} == {name: point.keys() for name, point in after.items()}:
        return [
            printable(f"{name} {value} -> {after[method][name]}")
            for method, point in before.items()
            for name, value in point.items()
            if value != after[method][name]
        ]
    return [" -> ".join(printable(spaced_params(params)) or "no parameters" for params in (before, after))]


def printable(text: str) -> str:
    """A text out of a file, for a line of a terminal: what would break the line or steer the terminal is spelled."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def metric_changes(before: Mapping[str, GoldenMetric], after: Mapping[str, GoldenMetric]) -> list[str]:
    """Metrics that say otherwise; one that was not asked for this time says nothing."""
    changes = []
    for name, metric in after.items():
        known = before.get(name)
        if known is None:
            changes.append(f"{name} none -> {metric.value:g}")
        elif known.ci95 is not None and metric.ci95 is not None and apart(known.ci95, metric.ci95):
            changes.append(f"{name} {figure_text(known.value, known.ci95)} -> {figure_text(metric.value, metric.ci95)}")
    return changes


def significant(value: float | None) -> float | None:
    """A metric's value as the file keeps it."""
    return None if value is None else _significant(value)


def _significant(value: float) -> float:
    return float(f"{value:.{_METRIC_DIGITS}g}") + 0.0


def _significant_range(ends: Range | None) -> Range | None:
    return ends and (_significant(ends[0]), _significant(ends[1]))


def rounded_to(value: float | None, decimals: int) -> float | None:
    """A figure as the file keeps it."""
    return None if value is None else round(float(value), decimals) + 0.0  # + 0.0: no "-0.0"


def round_range(ends: Range | None, decimals: int) -> Range | None:
    """An interval as the file keeps it."""
    return None if ends is None else (round(float(ends[0]), decimals) + 0.0, round(float(ends[1]), decimals) + 0.0)


def apart(one: Range | None, other: Range | None) -> bool:
    """Whether two intervals share no point; one that is there and one that is not are apart."""
    if one is None or other is None:
        return one != other
    return one[0] > other[1] or other[0] > one[1]


def figure_text(value: float, ends: Range) -> str:
    """A figure with its interval, as differences of records name it."""
    return f"{value:g} [{ends[0]:g}, {ends[1]:g}]"
