"""What a case found, as the data that travels to the controller (:mod:`.results`), and as golden records it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.bottleneck import bottleneck
from pytest_diffaccel.measure.deciding import BY_LPIPS, Deciding
from pytest_diffaccel.measure.measurement import Interval, Measurement, MetricFigures, SpeedClock
from pytest_diffaccel.measure.statistics import metric_figures
from pytest_diffaccel.records.contents import GroupWinners
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.golden_parts import FewerSteps, GoldenMetric
from pytest_diffaccel.rules import DIFFBENCH
from pytest_diffaccel.search.decide.select import Choice, Option
from pytest_diffaccel.search.group import GroupSearch
from pytest_diffaccel.search.null_control import scaled_environment
from pytest_diffaccel.search.predict.reach import VAGUE_SPEEDUP
from pytest_diffaccel.search.results import CellWinners, Chosen, Decided, Figures, Verified
from pytest_diffaccel.search.verify.verification import Winner
from pytest_diffaccel.search.workbench import Workbench


def figures_of(measurement: Measurement, metrics: Mapping[str, MetricFigures] = MappingProxyType({})) -> Figures:
    """A measurement's figures, without its blocks, with those of the secondary metrics that were asked for."""
    return Figures(
        candidate=measurement.candidate,
        speedup=measurement.speedup,
        wall_speedup=measurement.wall_speedup,
        estimates_agree=measurement.estimates_agree,
        lpips=measurement.quality.lpips,
        psnr_db=measurement.quality.psnr_db,
        ssim=measurement.quality.ssim,
        fired=measurement.fired,
        peak_memory_mb=measurement.peak_memory_mb,
        num_samples=measurement.sampling.num_samples,
        environment=measurement.environment,
        rounds_s=tuple(run.total_s for block in measurement.blocks for run in block.runs),
        metrics=dict(metrics),
    )


def deciding_figures(bench: Workbench, measurement: Measurement) -> dict[str, MetricFigures]:
    """Of a candidate's measurement the metric that decides, by its name; nothing where that is LPIPS."""
    name = bench.settings.quality.name
    return {name: metric_figures(measurement.metrics[name])} if name in measurement.metrics else {}


def standing(bench: Workbench, cell: Cell, accelerator: str, choices: Sequence[Choice]) -> tuple[Chosen, ...]:
    """A group's winners before they are verified, one per target that is met."""
    return tuple(
        _chosen(bench, GoldenKey(cell, accelerator, choice.target), choice.option)
        for choice in choices
        if choice.option is not None and choice.reason is None
    )


def cell_winners(
    bench: Workbench, cell: Cell, winners: Mapping[str, Sequence[Winner]], unfinished: Iterable[str] = ()
) -> CellWinners:
    """The winners of a cell's groups, with their environment and where their pictures lie.

    Args:
        bench: the search's workbench.
        cell: the cell.
        winners: by accelerator.
        unfinished: accelerators of which others may yet win.
    """
    environment = scaled_environment(bench, cell)
    decided, undecided, verified = [], [], {}
    barred = _barred(bench, cell, winners)
    for accelerator, own in winners.items():
        for winner in own:
            key, choice = GoldenKey(cell, accelerator, winner.choice.target), winner.choice
            measurement = winner.measurement
            is_verified = measurement is not None and measurement.sampling.purpose == "winner"
            if measurement and is_verified:
                verified[measurement.candidate.key] = measurement
            if choice.reason == "undecided":
                shown = measurement if is_verified else None
                undecided += [_chosen(bench, key, choice.option, barred, shown)] if choice.option else []
                continue
            entry = _entry(bench, winner, environment).rounded()
            pictures = bench.pictures.winner_folder(measurement.candidate) if measurement and is_verified else None
            decided.append(Decided(key, entry, None if pictures is None else str(pictures)))
    return CellWinners(
        decided=tuple(sorted(decided, key=lambda one: one.key.prompt_order)),
        undecided=tuple(undecided),
        verified=tuple(_verified(bench, measurement) for measurement in verified.values()),
        environment=environment,
        baseline=str(bench.pictures.baseline_folder(cell, "winner")),
        prompts=tuple(prompt for batch in bench.batches(cell, "winner") for prompt in batch.prompts),
        barred=barred,
        unfinished=tuple(sorted(unfinished)),
    )


def _entry(bench: Workbench, winner: Winner, environment: Environment) -> GoldenEntry:
    """What golden records of an outcome, with the secondary metrics that were asked for."""
    metrics = bench.secondary.figures(winner.measurement) if winner.measurement else {}
    speedups, quality = _speedups(bench, winner.choice.option), bench.settings.quality
    entry = golden_entry(winner, environment, speedups, metrics, quality)
    return replace(entry, rule=DIFFBENCH) if bench.settings.by_mean else entry


def _barred(bench: Workbench, cell: Cell, accelerators: Iterable[str]) -> dict[str, str]:
    """Why verified candidates of a cell cannot win, in words, by key."""
    return {key: bar.text for name in accelerators for key, bar in bench.secondary.bars(cell, name).items()}


def keep_winners(bench: Workbench, cell: Cell, winners: Mapping[str, Sequence[Winner]]) -> None:
    """Store what was chosen in a cell's groups, by accelerator, and the speed-ups that it was chosen by.

    A report then shows the choice that golden records: from later blocks it would make another.
    """
    environment, sampling = bench.environment(cell), bench.sampling(cell, "search")
    for accelerator, own in winners.items():
        decided = [winner for winner in own if winner.choice.reason != "undecided"]
        entries = {winner.choice.target: _entry(bench, winner, environment) for winner in decided}
        options = GroupSearch(bench, cell, accelerator).plan().evaluated_options
        speedups = {option.candidate.key: option.speedup for option in options}
        barred = _barred(bench, cell, [accelerator])
        quality = bench.settings.quality
        rule = None if quality.is_lpips else quality.rule
        found = GroupWinners(
            cell, accelerator, environment.id, sampling, entries, speedups, barred=barred, quality=rule
        )
        bench.store.save_winners(found)


def _chosen(
    bench: Workbench,
    key: GoldenKey,
    option: Option,
    barred: Mapping[str, str] = MappingProxyType({}),
    verified: Measurement | None = None,
) -> Chosen:
    """An option for a target; its LPIPS, where that decides, is its verification's, if any, as in tables of winners."""
    why, quality = barred.get(option.candidate.key, ""), bench.settings.quality
    if quality.is_lpips:
        loss = verified.quality.lpips.value if verified else option.loss
        return Chosen(key, option.candidate.params, option.speedup, loss, why)
    known = bench.known(key.cell).find(option.candidate)
    assert known is not None  # or it would be no option
    decided_by = (quality.name, quality.metric.value_at(option.loss))
    return Chosen(key, option.candidate.params, option.speedup, known.quality.lpips.value, why, decided_by)


def _verified(bench: Workbench, measurement: Measurement) -> Verified:
    bound = bottleneck(measurement.blocks, measurement.busy_share)
    figures = figures_of(measurement, bench.secondary.figures(measurement))
    return Verified(figures, bound.bound if bound else None)


@dataclass(frozen=True)
class Speedups:
    """A candidate's speed-ups by both clocks.

    Attributes:
        wall: by the wall clock.
        device: by the GPU's own time; None where that is not read.
        decided_by: which had to reach the target.
    """

    wall: Interval
    device: Interval | None = None
    decided_by: SpeedClock = "wall"

    def to_golden(self) -> dict[str, Any]:
        """An entry's fields."""
        fields = {"speedup": self.wall.value, "speedup_ci95": (self.wall.low, self.wall.high)}
        if self.device is not None:
            fields |= {"device_speedup": self.device.value, "device_speedup_ci95": (self.device.low, self.device.high)}
        return {**fields, "decided_by": self.decided_by}


def _speedups(bench: Workbench, option: Option | None) -> Speedups | None:
    """An option's, as far as they are known; None without one. What decided is the option's own."""
    if option is None:
        return None
    known, decided_by = bench.known(option.candidate.cell), bench.settings.decide_by

    def by(clock: SpeedClock) -> Interval:
        return option.speedup if clock == decided_by else known.costs_by(clock).speedups([option.candidate])[0]

    device = by("device") if known.rounds("device") else None
    if device is not None and decided_by == "wall" and device.half_width_ratio > VAGUE_SPEEDUP:
        device = None  # its kinds of steps were not timed by that clock: other accelerators' say little
    return Speedups(by("wall"), device, decided_by)


def golden_entry(
    winner: Winner,
    environment: Environment,
    speedups: Speedups | None = None,
    metrics: Mapping[str, MetricFigures] = MappingProxyType({}),
    quality: Deciding = BY_LPIPS,
) -> GoldenEntry:
    """What golden records of a target's outcome in ``environment``.

    Args:
        winner: the outcome; not an undecided one.
        environment: where it was measured.
        speedups: of its option; None where the wall clock's, which decided, is all there is.
        metrics: its secondary metrics by name, as far as they were asked for.
        quality: what decided.
    """
    measurement, option, reason = winner.measurement, winner.choice.option, winner.choice.reason
    if reason == "undecided":
        raise ValueError(f"{winner.choice.target:g}x is undecided: golden records what is known")
    figures: dict[str, Any]
    if measurement is None or option is None:
        names = ("speedup", "wall_speedup", "lpips")
        figures = {"params": {}, "num_samples": 0} | dict.fromkeys([*names, *(f"{name}_ci95" for name in names)])
    else:
        figures = {
            "params": measurement.candidate.params,
            "num_samples": measurement.sampling.num_samples,
            # Its own blocks and all others of the same kinds of steps; the wall estimate is from its own alone.
            **(speedups or Speedups(option.speedup)).to_golden(),
            "wall_speedup": measurement.wall_speedup.value,
            "wall_speedup_ci95": (measurement.wall_speedup.low, measurement.wall_speedup.high),
            "lpips": measurement.quality.lpips.value,
            "lpips_ci95": (measurement.quality.lpips.low, measurement.quality.lpips.high),
            **_selection(quality, option),
            # What only comes nearest to a target is not timed for it: its kinds of steps tell how fast it is.
            "basis": "measured" if measurement.blocks else "predicted",
            "metrics": {name: GoldenMetric.of(metric) for name, metric in metrics.items()} or None,
        }
        if winner.rival is not None:
            figures |= _fewer_steps(quality, measurement, winner.rival)
    return GoldenEntry(
        status="unattainable" if reason else "met",
        reason=reason,
        batch_size=environment.batch_size,
        environment=environment.id,
        **figures,
    )


def _selection(quality: Deciding, option: Option) -> dict[str, Any]:
    """What decided, and what it said of the samples that a winner was chosen on."""
    if quality.is_lpips:
        return {"selection_lpips": option.loss}
    return {"quality": quality.name, "selection_quality": quality.metric.value_at(option.loss)}


def _fewer_steps(quality: Deciding, measurement: Measurement, rival: Measurement) -> dict[str, Any]:
    """The rival as golden has it, and whether it is worse by the metric that decided."""
    lpips = rival.quality.lpips
    scored, all_samples = rival.sampling.num_samples, measurement.sampling.num_samples
    fewer = FewerSteps(
        *(rival.candidate.cell.steps, rival.speedup.value, lpips.value, (lpips.low, lpips.high)),
        num_samples=scored if scored < all_samples else None,
    )
    if quality.is_lpips:
        return {"fewer_steps": fewer}
    figures = metric_figures(rival.metrics[quality.name])
    beats = quality.rule.cost(measurement) < quality.rule.cost(rival)
    fewer = replace(fewer, quality=figures.value, quality_ci95=figures.ci95)
    return {"fewer_steps": fewer, "beats_fewer_steps": beats}
