"""How fast a case is by each of its clocks: which they are, what of the budget each gets, and what follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pytest_diffaccel.gate.case_plan import (
    LARGEST_ASKED,
    Budget,
    GateCase,
    affordable,
    design,
    power,
    recordable,
    shows,
)
from pytest_diffaccel.gate.clocks import DEVICE, HOST, Clock, wall_clock
from pytest_diffaccel.gate.conditions import conditions, launch_bound
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import LOOKS, robust_mean
from pytest_diffaccel.gate.speed import Timed, explain_by_times, first_finding, slower_baseline, speed_finding
from pytest_diffaccel.gate.timing import CaseTimer, GpuUse
from pytest_diffaccel.gate.verdict import Finding
from pytest_diffaccel.measure.busy_clock import LAUNCH_BOUND_SHARE, SHARED_SHARE, MarkersLost
from pytest_diffaccel.settings.gate_options import GateSettings

# Device time beside other processes that take more of the GPU than this shows no regression. At 13% speed-ups differed
# by 0.02% from those of an idle GPU, without their slices (an H100, kernels of up to 4.4 ms; docs/ci.md).
_MOST_CUT = 0.25
_RECORDED_BESIDE_OTHERS = (
    "other processes use this GPU, whose references should be recorded while nobody else does: record them again "
    "(--gate --update-golden --fresh)"
)
_TOO_LITTLE_KNOWN = (
    f"not timed, since its references know it too little to show even a slowdown of {LARGEST_ASKED:.0%}: record "
    "further ones (--gate --update-golden)"
)


@dataclass(frozen=True)
class Judged:
    """What one clock said of a case.

    Attributes:
        clock: which.
        finding: what follows.
        others: further findings.
        timed: what was timed; None where there was no time.
        power: the chance that there was to show a slowdown that matters; None of a baseline.
        figure_s: what taking a figure took, seconds.
        busy_share: share of a run's wall time during which the GPU worked; None where that is not known.
        remarks: information.
        decides: whether its finding is part of the verdict.
    """

    clock: Clock
    finding: Finding
    others: tuple[Finding, ...] = ()
    timed: Timed | None = None
    power: float | None = None
    figure_s: float = 0.0
    busy_share: float | None = None
    remarks: tuple[str, ...] = ()
    decides: bool = True

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them."""
        return (*((self.finding,) if self.decides else ()), *self.others)

    @property
    def is_reference(self) -> bool:
        """Whether later sessions may be compared with it: also what is undecided, not what became slower."""
        return self.timed is not None and self.finding.status not in ("regressed", "warning")

    def notes(self) -> list[str]:
        """Information on it."""
        bound = launch_bound(self.busy_share) if self.busy_share is not None else ""
        return [*filter(None, [*self.remarks, bound]), *(conditions(self.timed) if self.timed else ())]

    def figures(self) -> dict[str, float]:
        """Numbers by name."""
        found = {} if self.power is None else {"power": self.power}
        if self.timed is not None:
            found["speedup"] = math.exp(float(robust_mean(self.timed.log_speedups).mean))
            found |= {"baseline_s": self.timed.baseline_s, "blocks": len(self.timed.blocks)}
        return found if self.busy_share is None else {**found, "gpu_busy_share": self.busy_share}

    def measured(self) -> dict[str, Any]:
        """What a session records of it; it was timed."""
        if self.timed is None:
            raise ValueError("nothing was timed")
        estimate = robust_mean(self.timed.log_speedups)
        return {
            "log_speedup": float(estimate.mean),
            "standard_error": float(estimate.error),
            "df": float(estimate.df),
            "figure_sd": self.timed.figure_sd,
            "baseline_s": self.timed.baseline_s,
            "figure_s": self.figure_s,
        }


@dataclass(frozen=True)
class SpeedJudge:
    """Judges one case's speed.

    Attributes:
        case: the case.
        timer: times it.
        settings: the gate's.
        cases: how many the whole run has.
        later: those that come after this one.
        budget: of the whole run.
        reference: what the case is compared with, by clock; None where there is nothing.
        recording: whether a reference is recorded.
        later_beside_s: what the later cases take beside timing, seconds; 0 where no reference tells.
    """

    case: GateCase
    timer: CaseTimer
    settings: GateSettings
    cases: int
    later: tuple[GateCase, ...]
    budget: Budget
    reference: Callable[[Clock], Reference | None]
    recording: bool
    later_beside_s: float = 0.0

    def by_its_clocks(self, block_s: float) -> Iterator[Judged]:
        """By the clock that decides; of a launch-bound winner by the host's, too.

        Args:
            block_s: a block of whole runs, seconds.
        """
        case, timer = self.case, self.timer
        if timer.device_type != "cuda":
            yield self._judged(wall_clock(timer.device_type), block_s)
            return
        lacking = timer.why_no_device_time()
        try:
            use = GpuUse() if lacking else timer.gpu_use()
        except MarkersLost as error:  # which the short probe did not meet
            lacking, use = f"device time cannot be read here ({error})", GpuUse()
        if lacking or not (self.recording or case.candidate is None or self.reference(DEVICE)):
            by_wall = self._judged(wall_clock("cuda"), block_s)
            yield replace(by_wall, busy_share=use.busy_share, remarks=(*by_wall.remarks, lacking))
            return
        began_s = self.budget.left_s
        yield replace(self._judged(DEVICE, timer.block_s(DEVICE), use), busy_share=use.busy_share)
        is_launch_bound = use.busy_share is not None and use.busy_share < LAUNCH_BOUND_SHARE
        if not (case.candidate and is_launch_bound and (self.recording or self.reference(HOST))):
            return
        if not self.recording and not shows(case, self.reference(HOST), HOST, self._tests, LARGEST_ASKED, HOST.most):
            yield self._host_judged(Judged(HOST, Finding("speed", "inconclusive", _TOO_LITTLE_KNOWN), power=0.0))
            return
        # Every later case keeps its pictures, and what this one's device time took.
        taken_s = began_s - self.budget.left_s
        kept_s = self.later_beside_s + taken_s * case.times_as_dear(self.later)
        if not self.recording and self.budget.left_s <= kept_s:
            why = f"not timed: the rest of the budget of {self.budget.seconds:.0f} s goes to the later winners"
            yield self._host_judged(Judged(HOST, Finding("speed", "inconclusive", why), power=0.0))
            return
        yield self._host_judged(self._judged(HOST, timer.block_s(HOST), kept_s=kept_s))

    @property
    def _tests(self) -> int:
        """Those that may fail the run: they share the false alarms that are allowed."""
        return self.cases * (2 if self.settings.host_fails else 1)

    def _judged(self, clock: Clock, block_s: float, use: GpuUse | None = None, kept_s: float = 0.0) -> Judged:
        """Timed by one clock.

        Args:
            clock: to time it by.
            block_s: of a block by that clock, seconds.
            use: what whole runs do with the GPU, by device time.
            kept_s: of the budget for later cases, beside what they keep by this clock.
        """
        case, timer, reference = self.case, self.timer, self.reference(clock)
        slowdown = self.settings.host_slowdown if clock == HOST else self.settings.slowdown
        share = recordable if self.recording else affordable
        left_s = self.budget.left_s - kept_s
        # By host time that is kept already, before this case's own first look.
        beside_s = 0.0 if clock == HOST else self.later_beside_s
        figures = share(case, self.later, left_s, block_s, clock.blocks, beside_s)
        plan = design(case, reference, clock, self._tests, slowdown, figures, recording=self.recording)
        if plan is None and case.candidate is None:
            why = f"not timed against itself: the budget of {self.budget.seconds:.0f} s goes to the winners"
            return Judged(clock, Finding("speed", "ok", why))
        if plan is None:
            why = (
                f"not timed: a first look takes {LOOKS[0] * clock.blocks * block_s:.0f} s, and of the budget of "
                f"{self.budget.seconds:.0f} s are left {max(0.0, left_s):.0f} s"
            )
            return Judged(clock, Finding("speed", "inconclusive", why), power=0.0)
        timed, seconds = timer.until_certain(clock, plan, reference, use or GpuUse(), to_the_end=self.recording)
        judged = Judged(
            clock,
            first_finding(timed, clock.words),
            timed=timed,
            power=power(plan, reference, clock) if case.candidate else None,
            figure_s=seconds / len(timed.figures),
        )
        if self.recording and clock == DEVICE and timer.cut_share > SHARED_SHARE:
            judged = replace(judged, remarks=(_RECORDED_BESIDE_OTHERS,))
        if reference is None:
            return judged
        found = speed_finding(timed, plan, reference, clock.words)
        finding, note = explain_by_times(found, timed, reference, clock.words)
        if clock == DEVICE:
            finding = beside_others(finding, timer.cut_share, of_winner=case.candidate is not None)
        judged = replace(judged, finding=finding, remarks=(*judged.remarks, note))
        if case.candidate is not None:
            return judged
        if finding.status != "ok":
            # Nothing is slower than itself: it is the measuring that is not sound, or too noisy.
            judged = replace(
                judged, finding=Finding("speed", "inconclusive", f"the baseline against itself: {finding.text}")
            )
        # Its own time tells where nothing but the device decides it, to a fraction of a percent.
        slower = slower_baseline(timed, reference, slowdown) if clock == DEVICE and not self.recording else None
        return replace(judged, others=(slower,)) if slower else judged

    def _host_judged(self, judged: Judged) -> Judged:
        """As a finding on the host, which fails no run unless that is asked for."""
        finding = replace(judged.finding, subject="host")
        if finding.status == "regressed" and not self.settings.host_fails:
            finding = replace(finding, status="warning")
        elif finding.status == "improved":
            finding = replace(finding, status="ok")
        elif finding.status == "inconclusive" and not self.settings.host_fails:
            note = f"host time is undecided: {finding.text}"
            return replace(judged, finding=finding, remarks=(*judged.remarks, note), decides=False)
        return replace(judged, finding=finding)


def beside_others(finding: Finding, cut_share: float, *, of_winner: bool = True) -> Finding:
    """What device time says where other processes use the GPU: no regression where they take much of it.

    Kernels that are cut off in every run cannot be told from slower ones. And no winner's improvement where they take
    any of it, for which golden is searched again: one of 18 unchanged winners seemed 4.3% faster beside another
    process, whose slices took 18%, and the others 0.8% at most (H200s; docs/ci.md).

    Args:
        finding: by device time.
        cut_share: of the GPU's time, that other processes' slices took beside what was kept.
        of_winner: whether it is a winner's; a baseline that is faster than itself shows that measuring is not sound.
    """
    why = f"other processes' time slices took {cut_share:.0%} beside that: judge it while nobody else uses this GPU"
    if finding.status == "regressed" and cut_share > _MOST_CUT:
        return replace(finding, status="inconclusive", text=f"{finding.text}; {why}")
    if finding.status == "improved" and of_winner and cut_share > SHARED_SHARE:
        return replace(finding, status="ok", text=f"{finding.text}; {why}")
    return finding


def no_time(budget: Budget) -> Finding:
    """That nothing was timed."""
    return Finding("speed", "inconclusive", f"the budget of {budget.seconds:.0f} s was spent before this case")
