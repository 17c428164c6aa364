"""The golden database's entries: what is recorded of a key, and its JSON.

Files of them are read and merged by :mod:`pytest_diffaccel.records.golden_file`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from pytest_diffaccel.matrix import Number
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.measurement import SpeedClock
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import (
    LPIPS_DECIMALS,
    SPEEDUP_DECIMALS,
    FewerSteps,
    GoldenMetric,
    Range,
    apart,
    figure_text,
    metric_changes,
    param_changes,
    printable,
    round_range,
    rounded_to,
    significant,
)
from pytest_diffaccel.rules import OURS

#: Fields of an entry by line of the file, so that a diff shows which part changed.
_LINES = (
    ("status", "reason", "params"),
    ("speedup", "speedup_ci95", "wall_speedup", "wall_speedup_ci95"),
    ("device_speedup", "device_speedup_ci95", "decided_by"),
    ("lpips", "lpips_ci95", "selection_lpips"),
    ("quality", "selection_quality", "rule"),
    ("metrics",),
    ("fewer_steps", "beats_fewer_steps"),
    ("num_samples", "batch_size", "environment"),
    ("basis", "quality_from"),
)

# Fields that are left out where there is nothing to say.
_OPTIONAL = {
    "reason",
    "selection_lpips",
    "selection_quality",
    "fewer_steps",
    "beats_fewer_steps",
    "quality_from",
    "device_speedup",
    "device_speedup_ci95",
    "metrics",
}

# Those that differ where they are not equal; figures have intervals.
_COMPARED = ("basis", "quality_from", "decided_by", "quality", "rule")


@checked_dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class GoldenEntry:
    """The winner of a key, or the record that the target cannot be reached.

    An unattainable entry holds the best speed-up that was reached and its parameters; when nothing could be
    measured at all, its params are empty, its figures None and its reason ``"speed"``. Types and ranges are
    checked on construction (``pydantic.ValidationError``, a ``ValueError``).

    Attributes:
        status: ``"met"`` or ``"unattainable"``.
        params: parameters by method, as the libraries name them.
        speedup: step-kind estimate of baseline time over accelerated time.
        speedup_ci95: (low, high) of its 95% interval, around ``speedup``.
        wall_speedup: the same from whole runs; what ``speedup`` is where that is predicted.
        wall_speedup_ci95: its interval.
        lpips: mean LPIPS against the baseline's images; 0 is identical.
        lpips_ci95: its interval.
        selection_lpips: its loss on the other prompts and seeds on which it was chosen, and which flatter the chosen;
            None in records of before it was kept.
        num_samples: images scored.
        batch_size: images per call.
        environment: id of the environment (12 hex digits), spelled out in ``environments.json``.
        reason: why unattainable: no candidate was fast enough (``"speed"``), or none of those that were was
            good enough (``"quality"``); None when met.
        fewer_steps: the unaccelerated pipeline at the step count that is as fast; None when no step count is, or in
            records of before it was measured.
        beats_fewer_steps: whether it loses less than fewer steps, by the metric that decided; None without them.
        basis: whether the speed-ups were measured on these parameters, or predicted by the cost model from the kinds
            of steps that they make.
        quality_from: whose losses these are, in words, where they are not of the environment's own weights.
        device_speedup: step-kind estimate by the GPU's own time; None where that was not read.
        device_speedup_ci95: its interval.
        decided_by: the clock whose speed-up had to reach the target.
        metrics: metrics beside LPIPS by name; None where none was asked for.
        quality: the metric that decided, one of ``metrics`` where it is not LPIPS.
        selection_quality: what it said of the samples that the winner was chosen on, where it is not LPIPS.
        rule: whether intervals decided, or means by DiffBench's rule.
    """

    status: Literal["met", "unattainable"]
    params: Mapping[str, Mapping[str, Number]]
    speedup: Annotated[float, Field(ge=0)] | None
    speedup_ci95: Range | None
    wall_speedup: Annotated[float, Field(ge=0)] | None
    wall_speedup_ci95: Range | None
    lpips: float | None
    lpips_ci95: Range | None
    num_samples: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    environment: Annotated[str, Field(pattern=r"\A[0-9a-f]{12}\z")]
    reason: Literal["speed", "quality"] | None = None
    selection_lpips: float | None = None
    fewer_steps: FewerSteps | None = None
    beats_fewer_steps: bool | None = None
    basis: Literal["measured", "predicted"] = "measured"
    quality_from: Annotated[str, Field(min_length=1)] | None = None
    device_speedup: Annotated[float, Field(ge=0)] | None = None
    device_speedup_ci95: Range | None = None
    decided_by: SpeedClock = "wall"
    metrics: Mapping[str, GoldenMetric] | None = None
    quality: Annotated[str, Field(pattern=r"\A[A-Za-z][A-Za-z0-9_]*\z")] = LPIPS
    selection_quality: float | None = None
    rule: Literal["ours", "diffbench"] = "ours"

    def __post_init__(self) -> None:
        if self.quality != LPIPS and self.lpips is not None and self.quality not in (self.metrics or {}):
            raise ValueError(f"quality is {self.quality}, of which metrics has no value")
        if self.selection_quality is not None and self.quality == LPIPS:
            raise ValueError("selection_quality without quality")
        if self.selection_lpips is not None and self.lpips is None:
            raise ValueError("selection_lpips without lpips")
        if self.fewer_steps is not None and self.quality != LPIPS:
            if (self.beats_fewer_steps is None) != (self.fewer_steps.quality is None):
                raise ValueError(f"fewer_steps with {self.quality} goes with beats_fewer_steps")
        elif self.fewer_steps is not None and self.lpips is not None:
            beats = self.lpips < self.fewer_steps.lpips
            if self.beats_fewer_steps not in (None, beats):
                raise ValueError(f"beats_fewer_steps is {self.beats_fewer_steps}, and the two losses say otherwise")
            object.__setattr__(self, "beats_fewer_steps", beats)
        elif self.beats_fewer_steps is not None:
            raise ValueError("beats_fewer_steps without fewer_steps")
        if (self.status == "met") != (self.reason is None):
            raise ValueError("an unattainable entry has a reason, and only that")
        figures = [figure for pair in self._figures() for figure in pair]
        if figures.count(None) == len(figures):
            if self.params or self.reason != "speed":
                raise ValueError("only an unattainable entry of reason 'speed' with empty params has null figures")
            return
        if None in figures:
            raise ValueError("either all figures are null (nothing measured) or none is")
        if self.status == "met" and not self.params:
            raise ValueError("an entry that is met names its params")
        by_device = (self.device_speedup, self.device_speedup_ci95)
        if (None in by_device) != (by_device == (None, None)):
            raise ValueError("device_speedup and device_speedup_ci95 go together")
        if self.decided_by == "device" and self.device_speedup is None:
            raise ValueError("what device time decided has a device_speedup")
        for value, ends in (*self._figures(), by_device):
            if value is not None and ends is not None and not ends[0] <= value <= ends[1]:
                raise ValueError(f"{value} lies outside its own interval {list(ends)}")

    def _figures(self) -> tuple[tuple[float | None, Range | None], ...]:
        return (
            (self.speedup, self.speedup_ci95),
            (self.wall_speedup, self.wall_speedup_ci95),
            (self.lpips, self.lpips_ci95),
        )

    @property
    def deciding_value(self) -> float | None:
        """The mean of the metric that decided; None where nothing was measured."""
        if self.quality == LPIPS:
            return self.lpips
        metric = (self.metrics or {}).get(self.quality)
        return metric.value if metric else None

    def rounded(self) -> GoldenEntry:
        """The entry as the file keeps it: speed-ups to 4 decimals, LPIPS to 6."""
        return replace(
            self,
            speedup=rounded_to(self.speedup, SPEEDUP_DECIMALS),
            speedup_ci95=round_range(self.speedup_ci95, SPEEDUP_DECIMALS),
            wall_speedup=rounded_to(self.wall_speedup, SPEEDUP_DECIMALS),
            wall_speedup_ci95=round_range(self.wall_speedup_ci95, SPEEDUP_DECIMALS),
            device_speedup=rounded_to(self.device_speedup, SPEEDUP_DECIMALS),
            device_speedup_ci95=round_range(self.device_speedup_ci95, SPEEDUP_DECIMALS),
            lpips=rounded_to(self.lpips, LPIPS_DECIMALS),
            lpips_ci95=round_range(self.lpips_ci95, LPIPS_DECIMALS),
            selection_lpips=rounded_to(self.selection_lpips, LPIPS_DECIMALS),
            fewer_steps=self.fewer_steps and self.fewer_steps.rounded(),
            beats_fewer_steps=None if self.quality == LPIPS else self.beats_fewer_steps,
            selection_quality=significant(self.selection_quality),
            metrics=self.metrics and {name: metric.rounded() for name, metric in self.metrics.items()},
        )

    def to_json(self) -> str:
        """The entry's JSON text, several lines indented to stand in the file; rounded."""
        rounded = self.rounded()
        fields = asdict(rounded)
        fields["metrics"] = rounded.metrics and {name: metric.to_json() for name, metric in rounded.metrics.items()}
        fields["fewer_steps"] = rounded.fewer_steps and rounded.fewer_steps.to_json()
        fields = {name: value for name, value in fields.items() if value is not None or name not in _OPTIONAL}
        for name, usual in (("basis", "measured"), ("decided_by", "wall"), ("quality", LPIPS), ("rule", OURS)):
            if fields[name] == usual:
                del fields[name]
        lines = [", ".join(f'"{name}": {_dump(fields[name])}' for name in line if name in fields) for line in _LINES]
        return "{\n    " + ",\n    ".join(filter(None, lines)) + "\n  }"

    @classmethod
    def from_json(cls, text: str) -> GoldenEntry:
        """The entry that ``text`` spells.

        Raises:
            pydantic.ValidationError: (a ``ValueError``) when it spells none.
        """
        return _adapter().validate_json(text)

    def difference(self, other: GoldenEntry) -> str:
        """How ``other`` says something else than this entry, in words; empty when it does not."""
        moved = [_arrow("environment", self.environment, other.environment)]
        return ", ".join([*self.differences(other), *(moved if self.environment != other.environment else [])])

    def differences(self, other: GoldenEntry) -> list[str]:
        """What ``other`` says otherwise, one by one, as ``"cache_interval 4 -> 5"``; not in which environment.

        Figures differ only when their intervals share no point: repeating a measurement changes nothing. Those of
        another environment are another machine's, or of other weights, and say nothing of these.
        """
        changes = [
            *([f"{self._outcome} -> {other._outcome}"] if self._outcome != other._outcome else []),
            *param_changes(self.params, other.params),
            *(
                _arrow(name.replace("_", " "), before, after)
                for name in _COMPARED
                if (before := getattr(self, name)) != (after := getattr(other, name))
            ),
        ]
        if self.environment != other.environment:
            return changes
        changes += [
            f"{name.replace('_', ' ')} {_estimate(self, name)} -> {_estimate(other, name)}"
            for name in ("speedup", "device_speedup", "lpips")
            if apart(getattr(self, f"{name}_ci95"), getattr(other, f"{name}_ci95"))
            # What could not be read this time says nothing else.
            and not (name == "device_speedup" and other.device_speedup is None)
        ]
        changes += metric_changes(self.metrics or {}, other.metrics or {})
        if self.fewer_steps is None is not other.fewer_steps:
            changes.append(f"fewer steps none -> {other.fewer_steps.steps}")
        return changes

    @property
    def _outcome(self) -> str:
        return self.status if self.reason is None else f"{self.status} ({self.reason})"


def dump_entries(entries: Mapping[GoldenKey, GoldenEntry]) -> str:
    """The golden file's text: one flat JSON object in prompt order, one trailing newline."""
    keys = sorted(entries, key=lambda key: key.prompt_order)
    items = ",\n".join(f"  {_dump(str(key))}: {entries[key].to_json()}" for key in keys)
    return f"{{\n{items}\n}}\n" if items else "{}\n"


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _arrow(name: str, before: object, after: object) -> str:
    said = ("none" if value is None else value for value in (before, after))
    return printable("{} {} -> {}".format(name, *said))


def _estimate(entry: GoldenEntry, name: str) -> str:
    ends = getattr(entry, f"{name}_ci95")
    return figure_text(getattr(entry, name), ends) if ends else "none"


@cache
def _adapter() -> TypeAdapter[GoldenEntry]:
    return TypeAdapter(GoldenEntry)
