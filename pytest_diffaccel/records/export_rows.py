"""A store's contents as flat rows: one per measurement, failure or skipped candidate, for tables of other tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any, TypeAlias

from pytest_diffaccel.accelerators.stack import stack_words
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.bottleneck import bottleneck
from pytest_diffaccel.measure.measurement import Interval, Measurement, Sampling
from pytest_diffaccel.measure.statistics import metric_figures
from pytest_diffaccel.records.contents import Contents, Decision, Failure, Recorded
from pytest_diffaccel.records.environment import Environment

#: Of one type each: str, int, float or bool; None where a row has no such value.
Row: TypeAlias = dict[str, Any]
#: Columns that every export has, with their types. Those of params (``param_...``), of counters (``fired_...``) and of
#: secondary metrics (``metric_...``, their changes as shares) follow, as many as the rows have. Times in seconds,
#: memory in MiB, PSNR in dB; intervals are of 95%.
COLUMNS: Mapping[str, type] = {
    **dict.fromkeys(("status", "reason", "candidate", "pipe", "scheduler"), str),
    "steps": int,
    "accelerator": str,
    **dict.fromkeys(("speedup", "speedup_low", "speedup_high"), float),
    **dict.fromkeys(("wall_speedup", "wall_speedup_low", "wall_speedup_high"), float),
    **dict.fromkeys(("speedup_over_eager", "speedup_over_eager_low", "speedup_over_eager_high"), float),
    "estimates_agree": bool,
    **dict.fromkeys(("lpips", "lpips_low", "lpips_high", "psnr_db", "ssim", "peak_memory_mb"), float),
    "blocks": int,
    **dict.fromkeys(("baseline_s", "accelerated_s"), float),
    "bottleneck": str,
    **dict.fromkeys(("num_samples", "batch_size", "seed"), int),
    **dict.fromkeys(("prompts_digest", "purpose", "environment", "model_source", "device", "dtype", "stack"), str),
    "host": str,
    "lpips_noise_floor": float,
    "created_at": str,
}
PARAM, FIRED, METRIC = "param_", "fired_", "metric_"


def export_rows(contents: Contents) -> list[Row]:
    """All rows, in the order in which they were stored; measured ones first, then failed, then skipped.

    A candidate that was passed over at first and measured later, as it turned out promising, is not skipped.
    """
    rows = [_measured(recorded, contents.environments) for recorded in contents.measurements]
    rows += [_failed(failure, contents.environments) for failure in contents.failures]
    known = {(row["candidate"], row["environment"]) for row in rows}
    skipped = (
        decision for decision in contents.decisions if (decision.candidate.key, decision.environment) not in known
    )
    rows += [_skipped(decision, contents.environments) for decision in skipped]
    columns = {**COLUMNS, **dict.fromkeys(sorted({name for row in rows for name in row} - COLUMNS.keys()))}
    return [{name: row.get(name) for name in columns} for row in rows]


def column_type(name: str, rows: Iterable[Row]) -> type:
    """The type of a column's values."""
    if name in COLUMNS:
        return COLUMNS[name]
    if name.startswith(METRIC):
        return float
    return int if all(isinstance(row[name], int) for row in rows if row[name] is not None) else float


def _measured(recorded: Recorded, environments: Mapping[str, Environment]) -> Row:
    measurement = recorded.measurement
    environment = environments.get(measurement.environment)
    gain = environment.over_eager if environment else None
    return {
        "status": "measured",
        **_candidate(measurement.candidate),
        **_interval("speedup", measurement.speedup),
        **_interval("wall_speedup", measurement.wall_speedup),
        **(_interval("speedup_over_eager", gain.speedup(measurement.speedup)) if gain else {}),
        "estimates_agree": measurement.estimates_agree,
        **_interval("lpips", measurement.quality.lpips),
        "psnr_db": measurement.quality.psnr_db,
        "ssim": measurement.quality.ssim,
        "peak_memory_mb": measurement.peak_memory_mb,
        **dict(_times(measurement)),
        **{f"{FIRED}{name}": count for name, count in measurement.fired.items()},
        **dict(_metrics(measurement)),
        **_conditions(measurement.sampling, measurement.environment, environments),
        "host": measurement.host or None,
        "created_at": recorded.created_at,
    }


def _failed(failure: Failure, environments: Mapping[str, Environment]) -> Row:
    return {
        "status": "failed",
        "reason": f"{failure.kind}: {failure.message}",
        **_candidate(failure.candidate),
        **_conditions(failure.sampling, failure.environment, environments),
        "created_at": failure.created_at,
    }


def _skipped(decision: Decision, environments: Mapping[str, Environment]) -> Row:
    return {
        "status": "skipped",
        "reason": decision.evidence,
        **_candidate(decision.candidate),
        **_conditions(decision.sampling, decision.environment, environments),
        "created_at": decision.created_at,
    }


def _candidate(candidate: Candidate) -> Row:
    params = {f"{PARAM}{name}": value for point in candidate.params.values() for name, value in point.items()}
    return {
        "candidate": candidate.key,
        **asdict(candidate.cell),
        "accelerator": candidate.accelerator,
        **params,
    }


def _interval(name: str, interval: Interval) -> Row:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _metrics(measurement: Measurement) -> Iterator[tuple[str, float | None]]:
    for name, metric in measurement.metrics.items():
        figures, column = metric_figures(metric), f"{METRIC}{name}"
        yield column, figures.value
        yield from zip((f"{column}_low", f"{column}_high"), figures.ci95 or (None, None), strict=True)
        if metric.baseline is not None:
            change = figures.change
            ends = (change.value, change.low, change.high) if change else (None, None, None)
            yield from zip([f"{column}_change{end}" for end in ("", "_low", "_high")], ends, strict=True)


def _times(measurement: Measurement) -> Iterator[tuple[str, Any]]:
    blocks = measurement.blocks
    yield "blocks", len(blocks)
    if blocks:
        yield "baseline_s", median(block.baseline.total_s for block in blocks)
        yield "accelerated_s", median(run.total_s for block in blocks for run in block.runs)
    bound = bottleneck(blocks, measurement.busy_share)
    if bound is not None:
        yield "bottleneck", bound.in_words()


def _conditions(sampling: Sampling, name: str, environments: Mapping[str, Environment]) -> Row:
    row: Row = {**asdict(sampling), "environment": name}
    environment = environments.get(name)
    if environment is not None:
        row |= {field: getattr(environment, field) for field in ("model_source", "device", "dtype")}
        row["stack"] = stack_words(environment.stack)
        row["lpips_noise_floor"] = environment.scale.noise_floor if environment.scale else None
    return row
