"""Calibration: what each kind of step costs, timed in short interleaved runs before any candidate is generated.

Candidates are many, kinds of steps are few, and a kind costs the same in every cell of a pipe. So a few rounds, each of
an unaccelerated short run and some accelerated ones, tell the speed-ups of all candidates. The next round is always
made of the runs that tell most of the candidates whose speed-ups are known least.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean

from filelock import Timeout

from pytest_diffaccel import matrix
from pytest_diffaccel.devices import CudaBroken, is_cuda_broken
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.busy_clock import why_no_device_time
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.measure.timing_lock import lock_between_processes
from pytest_diffaccel.records.leases import IN_COMMON
from pytest_diffaccel.search.budget import TimeIsUp
from pytest_diffaccel.search.calibrate.timer import Timer
from pytest_diffaccel.search.news import Calibration
from pytest_diffaccel.search.null_control import scaled_environment
from pytest_diffaccel.search.pipelines import Unavailable
from pytest_diffaccel.search.predict.reach import VAGUE_SPEEDUP, is_open
from pytest_diffaccel.search.sharing import whole_pipe
from pytest_diffaccel.search.workbench import Workbench
from pytest_diffaccel.settings.work_folder import WORK

_LOG = logging.getLogger(__name__)

# A speed-up is known when its 95% interval reaches no farther to either side, as a share of it.
_KNOWN_HALF_WIDTH = 0.035
# The same by the GPU's own time, which hardly varies.
_KNOWN_BY_DEVICE = 0.015
# A calibration takes at most this share of what generating all candidates would, but makes so many rounds in any case.
_SHARE, _LEAST_ROUNDS = 0.05, 4


def ensure_calibrated(bench: Workbench, cell: Cell) -> None:
    """Calibrate the cell's pipe (:func:`calibrate`) unless this process has seen to it."""
    if cell.pipe not in bench.calibrations:
        bench.calibrations[cell.pipe] = calibrate(bench, cell)


def calibrate(bench: Workbench, cell: Cell) -> Calibration | None:
    """Time the kinds of steps of all of the search's candidates of a pipe, as far as that is not done.

    Processes that share its environment do it together. What an earlier session timed is looked at again by one of them
    in two rounds, and forgotten where these disagree.

    Args:
        bench: the search's workbench.
        cell: any of the pipe's.

    Returns:
        How it went; None where no short run works, or the model takes no candidate.

    Raises:
        Unavailable: when the GPU's own time is to decide, and cannot be read.
    """
    if bench.settings.decide_by == "device":
        _why_no_device_time(bench)  # at once, not after minutes of the wall clock
    folder, environment = WORK.calibration, bench.environment(cell).id
    timer = Timer(bench, cell)
    with lock_between_processes(folder / f"{environment}.lock").write_lock():
        bench.reread(cell)
        rounds = bench.known(cell).rounds()
        if rounds and rounds[-1].started_at < bench.began_at and not timer.still_holds():
            recent = [made for made in bench.known(cell).rounds() if made.started_at >= bench.began_at]
            bench.store.forget_rounds(environment)
            # What the GPU itself takes is no matter of the machine's state.
            for kept in (*recent, *bench.known(cell).rounds("device")):
                bench.store.save_round(environment, kept)
            bench.reread(cell)
    # One of them sees to this meanwhile: it is needed at the end of the first cell, when others may have nothing to do.
    with suppress(Timeout), lock_between_processes(folder / f"{environment}-scale.lock").write_lock(blocking=False):
        _see_to_scale(bench, cell)
    began, candidates = time.monotonic(), candidates_of(bench, cell)
    _foresee(bench, cell, candidates)
    made = timer.narrow(candidates, is_predicted, _share_is_spent(bench, cell, candidates))
    if not candidates or not bench.known(cell).rounds():
        return None
    most_s = time.monotonic() - began
    if bench.settings.decide_by == "device":
        most_s = max(most_s, _share_s(bench, cell, candidates))
    made += _by_device(bench, cell, candidates, most_s)
    speedups, batch = bench.known(cell).costs.speedups(candidates), bench.settings.batch_size
    return Calibration(
        rounds=made,
        seconds=time.monotonic() - began,
        half_width_ratio=max(speedup.half_width_ratio for speedup in speedups),
        baseline_s=bench.known(cell).baseline_s(cell.steps),
        steps=cell.steps,
        accelerated_share=fmean(1 / speedup.value for speedup in speedups),
        first_batches=fmean(bench.first_samples(cell, one.accelerator) for one in candidates) / batch,
    )


def _see_to_scale(bench: Workbench, cell: Cell) -> None:
    """Measure the scale of losses and what the stack gains, unless another session is at it."""
    if bench.environment(cell).is_scaled(bench.began_at) or not bench.shared.take(whole_pipe(cell), [IN_COMMON]):
        return
    try:
        scaled_environment(bench, cell, bench.began_at)
    finally:
        bench.shared.release(whole_pipe(cell), [IN_COMMON])


def _foresee(bench: Workbench, cell: Cell, candidates: Sequence[Candidate]) -> None:
    """Foresee what methods decide by the picture, in each of the pipe's cells that are searched.

    Where that fails, their speed-ups stay vague, and their candidates show what is wrong.
    """
    for accelerator in bench.registry.select({candidate.accelerator for candidate in candidates}):
        for searched in bench.settings.cells if accelerator.deciding else ():
            if searched.pipe == cell.pipe:
                try:
                    bench.foresee(searched, accelerator)
                except Exception as error:
                    _LOG.warning("what %s decides in %s cannot be foreseen: %s", accelerator.name, searched, error)
                    if is_cuda_broken():
                        raise CudaBroken(f"this process can use its GPU no more ({error})") from error


def _by_device(bench: Workbench, cell: Cell, candidates: Sequence[Candidate], most_s: float) -> int:
    """Time the same by the GPU's own time, where there is a GPU that tells it; the number of rounds.

    Args:
        bench: the search's workbench.
        cell: any of the pipe's.
        candidates: all of the pipe's.
        most_s: seconds that it may take, after the least rounds.

    Raises:
        Unavailable: when it is to decide, and cannot be read.
    """
    if bench.settings.gpus is None:
        return 0
    lacking = _why_no_device_time(bench)
    if lacking:
        _LOG.warning("%s; speed-ups are recorded by the wall clock only", lacking)
        return 0
    began = time.monotonic()

    def time_is_up() -> bool:
        rounds = len(bench.known(cell).rounds("device"))
        return rounds >= _LEAST_ROUNDS and time.monotonic() - began >= most_s

    # What does not decide is recorded where it is not vague, and no better is needed.
    known_at = _KNOWN_BY_DEVICE if bench.settings.decide_by == "device" else VAGUE_SPEEDUP

    def is_known(speedup: Interval) -> bool:
        return speedup.half_width_ratio <= known_at

    made = Timer(bench, cell, "device").narrow(candidates, is_known, time_is_up)
    if bench.settings.decide_by == "device" and not bench.known(cell).rounds("device"):
        raise Unavailable("no short run could be timed by the GPU's own time, which is to decide: the log says why")
    return made


def _why_no_device_time(bench: Workbench) -> str:
    """Why the GPU's own time cannot be read, in words; empty where it can.

    Raises:
        Unavailable: with that, when it is to decide.
    """
    with bench.pipelines.timing():
        lacking = why_no_device_time()
    if lacking and bench.settings.decide_by == "device":
        raise Unavailable(lacking)
    return lacking


def is_predicted(speedup: Interval) -> bool:
    """Whether a speed-up is known as well as the search needs it: better where it may or may not reach a target."""
    if speedup.half_width_ratio <= _KNOWN_HALF_WIDTH:
        return True
    return speedup.half_width_ratio <= VAGUE_SPEEDUP and not is_open(speedup)


def candidates_of(bench: Workbench, cell: Cell) -> list[Candidate]:
    """All of a pipe's candidates that the model can take, once each: a step costs the same under every scheduler."""
    settings = bench.settings
    steps = {other.steps for other in settings.cells if other.pipe == cell.pipe} | {cell.steps}
    cells = [replace(cell, steps=count) for count in sorted(steps)]
    known = [
        candidate
        for one in cells
        for candidate in matrix.candidates(
            [one], bench.registry.select_at(one, settings.accelerators), coarse=settings.coarse
        )
    ]
    return [candidate for candidate in known if not bench.pipelines.misfit(candidate)]


def _share_is_spent(bench: Workbench, cell: Cell, candidates: Sequence[Candidate]) -> TimeIsUp:
    """Whether the session's rounds by the wall clock have taken their share; what does not decide makes the least."""

    def spent() -> bool:
        rounds = [made for made in bench.known(cell).rounds() if made.started_at >= bench.began_at]
        # Those of another session, which began before this one, may all end with their last step.
        if len(rounds) < _LEAST_ROUNDS or not any(made.baseline.whole for made in rounds):
            return False  # every run that fails is passed over: that ends by itself
        if bench.settings.decide_by == "device":
            return True
        took_s = sum(run.total_s for made in rounds for run in (made.baseline, *made.runs))
        return took_s > _share_s(bench, cell, candidates)

    return spent


def _share_s(bench: Workbench, cell: Cell, candidates: Sequence[Candidate]) -> float:
    """Seconds that a calibration may take: a share of what generating all candidates would."""
    batches = math.ceil(bench.settings.num_samples / bench.settings.batch_size)
    schedulers = len({other.scheduler for other in bench.settings.cells if other.pipe == cell.pipe}) or 1
    known = bench.known(cell)
    run_s = {steps: known.baseline_s(steps) for steps in {candidate.cell.steps for candidate in candidates}}
    speedups = known.costs_by("wall").speedups(candidates)
    all_s = sum(
        run_s[candidate.cell.steps] / speedup.value for candidate, speedup in zip(candidates, speedups, strict=True)
    )
    return _SHARE * schedulers * batches * all_s
