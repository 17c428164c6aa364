"""What a case found, as plain data that travels on its pytest report from worker to controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.bottleneck import bottleneck
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.records.contents import GroupWinners
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import FewerSteps, GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.search.decide.select import Choice, Option
from pytest_diffaccel.search.group import Group
from pytest_diffaccel.search.null_control import scaled_environment
from pytest_diffaccel.search.verify.verification import Winner
from pytest_diffaccel.search.workbench import Workbench


def measurement_properties(measurement: Measurement, *, stored: bool) -> dict[str, Any]:
    """A candidate's figures, and whether an earlier run had made them; JSON types only."""
    return {**_figures(measurement), "stored": stored}


def _figures(measurement: Measurement) -> dict[str, Any]:
    return {
        "cell": str(measurement.candidate.cell),
        "accelerator": measurement.candidate.accelerator,
        "candidate": measurement.candidate.key,
        "params": measurement.candidate.params,
        "speedup": measurement.speedup.value,
        "speedup_ci95": _ends(measurement.speedup),
        "wall_speedup": measurement.wall_speedup.value,
        "wall_speedup_ci95": _ends(measurement.wall_speedup),
        "estimates_agree": measurement.estimates_agree,
        "lpips": measurement.quality.lpips.value,
        "lpips_ci95": _ends(measurement.quality.lpips),
        "psnr_db": measurement.quality.psnr_db,
        "ssim": measurement.quality.ssim,
        "fired": measurement.fired,
        "peak_memory_mb": measurement.peak_memory_mb,
        "num_samples": measurement.sampling.num_samples,
        "environment": measurement.environment,
        "rounds_s": [run.total_s for block in measurement.blocks for run in block.runs],
    }


def provisional_properties(cell: Cell, accelerator: str, choices: Sequence[Choice]) -> dict[str, Any]:
    """A group's winners as they stand before they are verified: ``provisional``, one per target that is met."""
    return {
        "cell": str(cell),
        "accelerator": accelerator,
        "provisional": [
            {"target": choice.target, **_option(choice.option)}
            for choice in choices
            if choice.option is not None and choice.reason is None
        ],
    }


def winner_properties(bench: Workbench, cell: Cell, winners: Mapping[str, Sequence[Winner]]) -> dict[str, Any]:
    """The golden entries of a cell's groups, their environment and where winners' pictures lie; JSON types only.

    Returns:
        ``golden``: entry's JSON text by golden key, of every target that is decided; ``undecided``: of the others what
        comes nearest; ``environments``: by id;
        ``verified``: the figures of the winners' own measurements, and what bounds them (:class:`.Bottleneck`);
        ``pictures``: folder of numbered PNG files by golden key, ``baseline``: the unaccelerated ones,
        and ``prompts``: theirs, in order.
    """
    environment = scaled_environment(bench, cell)
    entries, pictures, verified, undecided = {}, {}, {}, []
    for accelerator, own in winners.items():
        for winner in own:
            choice = winner.choice
            key = GoldenKey(cell.pipe, cell.scheduler, cell.steps, accelerator, choice.target)
            is_verified = winner.measurement is not None and winner.measurement.sampling.purpose == "winner"
            if winner.measurement and is_verified:
                verified[winner.measurement.candidate.key] = winner.measurement
            if choice.reason == "undecided" and choice.option is not None:
                undecided.append({"key": str(key), **_option(choice.option)})
                continue
            entries[str(key)] = golden_entry(winner, environment).to_json()
            if winner.measurement and is_verified:
                pictures[str(key)] = str(bench.pictures.winner_folder(winner.measurement.candidate))
    return {
        "golden": entries,
        "undecided": undecided,
        "verified": [_verified(measurement) for measurement in verified.values()],
        "environments": {environment.id: environment.to_json()},
        "pictures": pictures,
        "baseline": str(bench.pictures.baseline_folder(cell, "winner")),
        "prompts": [prompt for batch in bench.batches(cell, "winner") for prompt in batch.prompts],
    }


def keep_winners(bench: Workbench, cell: Cell, winners: Mapping[str, Sequence[Winner]]) -> None:
    """Store what was chosen in a cell's groups, by accelerator, and the speed-ups that it was chosen by.

    A report then shows the choice that golden records: from later blocks it would make another.
    """
    environment, sampling = bench.environment(cell), bench.sampling(cell, "search")
    for accelerator, own in winners.items():
        decided = [winner for winner in own if winner.choice.reason != "undecided"]
        entries = {winner.choice.target: golden_entry(winner, environment) for winner in decided}
        options = Group(bench, cell, accelerator).plan().options
        speedups = {option.candidate.key: option.speedup for option in options}
        bench.store.save_winners(GroupWinners(cell, accelerator, environment.id, sampling, entries, speedups))


def _option(option: Option) -> dict[str, Any]:
    return {
        "params": option.candidate.params,
        "speedup": option.speedup.value,
        "speedup_ci95": _ends(option.speedup),
        "lpips": option.lpips,
    }


def _verified(measurement: Measurement) -> dict[str, Any]:
    bound = bottleneck(measurement.blocks, measurement.flops)
    return {**_figures(measurement), "bound": bound.bound if bound else None}


def golden_entry(winner: Winner, environment: Environment) -> GoldenEntry:
    """What golden records of a target's outcome in ``environment``."""
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
            "speedup": option.speedup.value,
            "speedup_ci95": (option.speedup.low, option.speedup.high),
            "wall_speedup": measurement.wall_speedup.value,
            "wall_speedup_ci95": (measurement.wall_speedup.low, measurement.wall_speedup.high),
            "lpips": measurement.quality.lpips.value,
            "lpips_ci95": (measurement.quality.lpips.low, measurement.quality.lpips.high),
            "selection_lpips": option.lpips,
            # What only comes nearest to a target is not timed for it: its kinds of steps tell how fast it is.
            "basis": "measured" if measurement.blocks else "predicted",
        }
        if winner.rival is not None:
            fewer = winner.rival.quality.lpips
            figures["fewer_steps"] = FewerSteps(
                winner.rival.candidate.cell.steps, winner.rival.speedup.value, fewer.value, (fewer.low, fewer.high)
            )
    return GoldenEntry(
        status="unattainable" if reason else "met",
        reason=reason,
        batch_size=environment.batch_size,
        environment=environment.id,
        **figures,
    )


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
