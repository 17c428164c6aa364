"""A cell's candidates as rows: figures, verdict, and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeAlias

from pytest_diffaccel.matrix import TARGETS, Candidate, format_params
from pytest_diffaccel.measure.bottleneck import bottleneck
from pytest_diffaccel.measure.deciding import BY_LPIPS, LPIPS, QualityRule
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.measure.statistics import metric_figures
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import GoldenMetric
from pytest_diffaccel.report.html.content.cells import CellRecord
from pytest_diffaccel.report.html.content.prompt_texts import Prompts
from pytest_diffaccel.report.html.content.scores import Score, scores_of
from pytest_diffaccel.report.winners import metric_text
from pytest_diffaccel.search.predict.reach import may_reach

RowVerdict: TypeAlias = Literal["winner", "nearest", "frontier", "beaten", "skipped", "failed"]
#: Verdicts of those that golden records.
RECORDED: tuple[RowVerdict, ...] = ("winner", "nearest")
#: Verdicts of those that were measured.
MEASURED: tuple[RowVerdict, ...] = (*RECORDED, "frontier", "beaten")


@dataclass(frozen=True)
class RowFigures:
    """What measuring a candidate showed.

    Attributes:
        speedup: from all timed blocks of its kinds of steps.
        wall_speedup: from whole runs of its own blocks; None where it was not timed itself.
        baseline_s: median of the unaccelerated runs of its blocks, seconds; None where it was not timed itself.
        seconds: median of its own runs.
        lpips: mean over samples with its interval.
        worst_lpips: of the sample that lost most.
        worst_prompt: that sample's prompt.
        psnr_db: mean peak signal-to-noise ratio, dB.
        ssim: mean structural similarity.
        peak_memory_mb: MiB; None where it was not looked at.
        samples: images scored.
        blocks: timed blocks.
        verified: whether these are the figures of other prompts and seeds than it was chosen on.
        estimates_agree: whether the intervals of both speed-up estimates overlap.
        fired: how often each method acted in one generation, by counter.
        scores: what each metric says, by the name of its axis.
        metrics: secondary metrics with their changes, in words; empty without any.
    """

    speedup: Interval
    wall_speedup: Interval | None
    baseline_s: float | None
    seconds: float | None
    lpips: Interval
    worst_lpips: float
    worst_prompt: str
    psnr_db: float
    ssim: float
    peak_memory_mb: float | None
    samples: int
    blocks: int
    verified: bool
    estimates_agree: bool
    fired: Mapping[str, int]
    scores: Mapping[str, Score]
    metrics: str = ""


@dataclass(frozen=True)
class Row:
    """A candidate.

    Attributes:
        key: its key.
        accelerator: its accelerator's name.
        params: ``name=value`` pairs of all methods.
        verdict: what became of it; ``"nearest"``: it comes nearest to a target that none reaches; ``"frontier"``:
            neither the plain pipeline nor a measured candidate is as fast and loses less.
        reason: why, in words.
        targets: for a winner, the targets that it is the record of; those it reaches only.
        figures: None where it was not measured.
    """

    key: str
    accelerator: str
    params: str
    verdict: RowVerdict
    reason: str
    targets: tuple[float, ...]
    figures: RowFigures | None


def rows_of(
    record: CellRecord,
    entries: Mapping[GoldenKey, GoldenEntry],
    prompts: Prompts,
    quality: QualityRule,
) -> list[Row]:
    """Winners first, then what was measured by rising loss, then what failed or was skipped.

    Args:
        record: the cell.
        entries: the cell's winners, and what comes nearest to targets that none reaches.
        prompts: what was drawn.
        quality: what decided.
    """
    speedups = record.speedups
    measured = sorted(record.best_known.values(), key=quality.cost)
    won = _won(entries)
    frontier = {measurement.candidate.key for measurement in frontier_of(measured, speedups, quality)}
    rows = []
    for measurement in measured:
        key, params = measurement.candidate.key, format_params(measurement.candidate.params)
        own = won.get((measurement.candidate.accelerator, params), [])
        met = tuple(target for target, entry in own if entry.status == "met")
        verdict: RowVerdict = "frontier" if key in frontier else "beaten"
        if own:
            verdict = "winner" if met else "nearest"
        reason = _why_won(own, measurement) if own else _why_not(measurement, measured, speedups, quality)
        if key in record.barred and not met:
            reason = f"{record.barred[key]}; {reason}" if own else record.barred[key]
        figures = _figures(measurement, speedups[key], prompts, verified=key in record.verified)
        rows.append(Row(key, measurement.candidate.accelerator, params, verdict, reason, met, figures))
    rows.sort(key=lambda row: MEASURED.index(row.verdict) if row.verdict in RECORDED else len(RECORDED))
    rows += [
        _unmeasured(failure.candidate, "failed", f"{failure.kind}: {failure.message}")
        for failure in record.failures
        if failure.candidate.key not in record.best_known
    ]
    rows += [_unmeasured(skipped.candidate, "skipped", skipped.evidence) for skipped in record.skipped]
    return rows


def _unmeasured(candidate: Candidate, verdict: RowVerdict, reason: str) -> Row:
    return Row(candidate.key, candidate.accelerator, format_params(candidate.params), verdict, reason, (), None)


def frontier_of(
    measured: Sequence[Measurement], speedups: Mapping[str, Interval], quality: QualityRule = BY_LPIPS.rule
) -> list[Measurement]:
    """Those that no other is as fast as with less loss, by rising speed-up.

    The plain pipeline is one of the others: it loses nothing, so what is no faster than it is not among them.
    """
    fastest_first = sorted(
        measured, key=lambda measurement: (-speedups[measurement.candidate.key].value, quality.cost(measurement))
    )
    frontier: list[Measurement] = []
    least = math.inf
    for measurement in fastest_first:
        if quality.cost(measurement) < least and speedups[measurement.candidate.key].value > 1:
            least = quality.cost(measurement)
            frontier.append(measurement)
    return frontier[::-1]


def _won(entries: Mapping[GoldenKey, GoldenEntry]) -> dict[tuple[str, str], list[tuple[float, GoldenEntry]]]:
    won: dict[tuple[str, str], list[tuple[float, GoldenEntry]]] = {}
    for key, entry in sorted(entries.items(), key=lambda item: item[0].prompt_order):
        won.setdefault((key.accelerator, format_params(entry.params)), []).append((key.target, entry))
    return won


def _why_won(own: Sequence[tuple[float, GoldenEntry]], measurement: Measurement) -> str:
    met = ", ".join(f"{target:g}x" for target, entry in own if entry.status == "met")
    parts = [f"least loss at {met}"] if met else []
    why = {"speed": "too slow for", "quality": "fast ones lose too much at"}
    for reason, words in why.items():
        missed = ", ".join(f"{target:g}x" for target, entry in own if entry.reason == reason)
        parts += [f"best reached, {words} {missed}"] if missed else []
    rival = own[0][1].fewer_steps
    if rival is not None and own[0][1].beats_fewer_steps is False:
        parts.append(f"{rival.steps} plain steps are as fast and lose less")
    bound = bottleneck(measurement.blocks, measurement.busy_share)
    if bound is not None:
        parts.append(bound.in_words())
    return "; ".join(parts)


def _why_not(
    measurement: Measurement, measured: Sequence[Measurement], speedups: Mapping[str, Interval], quality: QualityRule
) -> str:
    own, cost = speedups[measurement.candidate.key], quality.cost(measurement)
    if not may_reach(own, TARGETS[0]):
        return f"reaches no target (the lowest is {TARGETS[0]:g}x)"
    if quality.value(measurement) is None:
        return f"another search measured it, without {quality.metric}, which decided"
    if not quality.allows(measurement):
        return f"loses more than {quality.worst:g}" if quality.metric == LPIPS else quality.too_bad
    for other in measured:
        faster = speedups[other.candidate.key].value >= own.value
        if faster and quality.cost(other) < cost:
            has = "loses" if quality.metric == LPIPS else f"has {quality.metric}"
            return (
                f"{other.candidate.accelerator} {format_params(other.candidate.params)} is as fast and {has} "
                f"{quality.figure(quality.value(other), 4)}"
            )
    return "on the frontier; at each target it reaches another record loses less, or is as good and faster"


def _figures(measurement: Measurement, speedup: Interval, prompts: Prompts, *, verified: bool) -> RowFigures:
    quality = measurement.quality
    place = max(range(len(quality.lpips_per_sample)), key=quality.lpips_per_sample.__getitem__)
    runs = [run.total_s for block in measurement.blocks for run in block.runs]
    return RowFigures(
        speedup=speedup,
        wall_speedup=measurement.wall_speedup if measurement.blocks else None,
        baseline_s=median(block.baseline.total_s for block in measurement.blocks) if measurement.blocks else None,
        seconds=median(runs) if runs else None,
        lpips=quality.lpips,
        worst_lpips=quality.lpips_per_sample[place],
        worst_prompt=prompts.of(measurement.sampling, place),
        psnr_db=quality.psnr_db,
        ssim=quality.ssim,
        peak_memory_mb=measurement.peak_memory_mb,
        samples=measurement.sampling.num_samples,
        blocks=len(measurement.blocks),
        verified=verified,
        estimates_agree=measurement.estimates_agree,
        fired=measurement.fired,
        metrics="; ".join(
            metric_text(name, GoldenMetric.of(metric_figures(metric))) for name, metric in measurement.metrics.items()
        ),
        scores=scores_of(measurement),
    )


def target_words(targets: Sequence[float]) -> str:
    """``"1.5x to 2x"`` for neighbouring targets, else all of them."""
    if len(targets) > 2 and _neighbours(targets):
        return f"{targets[0]:g}x to {targets[-1]:g}x"
    return ", ".join(f"{target:g}x" for target in targets)


def _neighbours(targets: Sequence[float]) -> bool:
    if targets[0] not in TARGETS:
        return False
    first = TARGETS.index(targets[0])
    return tuple(targets) == TARGETS[first : first + len(targets)]
