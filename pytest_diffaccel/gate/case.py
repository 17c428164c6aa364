"""One case of the gate: works as it should, is as good, is as fast; in that order, the cheap questions first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.gate.clocks import DEVICE, HOST, Clock, wall_clock
from pytest_diffaccel.gate.conditions import conditions, launch_bound
from pytest_diffaccel.gate.pictures import CellPictures, losses
from pytest_diffaccel.gate.plan import Budget, GateCase, affordable, design, power, recordable, speed_share
from pytest_diffaccel.gate.quality import explain_by_pictures, hidden_loss, quality_finding, same_pictures
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import robust_mean
from pytest_diffaccel.gate.speed import Timed, explain_by_times, first_finding, speed_finding
from pytest_diffaccel.gate.timing import CaseTimer
from pytest_diffaccel.gate.verdict import Finding
from pytest_diffaccel.gate_options import GateSettings
from pytest_diffaccel.measure.busy_clock import LAUNCH_BOUND_SHARE, why_no_device_time
from pytest_diffaccel.records.reference import Session, Speed
from pytest_diffaccel.search.workbench import Workbench

# Pictures whose distances moved by more than this are not drawn by the same weights; rounding moves them far less.
_PICTURES_TOLERANCE = 0.05


@dataclass(frozen=True)
class Showing:
    """What a case showed.

    Attributes:
        findings: at least one.
        notes: information.
        session: to be recorded as a reference; None where nothing was timed.
        figures: numbers by name.
        rounds_s: what each timed run of the case took, seconds.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    session: Session | None = None
    figures: tuple[tuple[str, float], ...] = ()
    rounds_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What one clock said of a case.

    Attributes:
        clock: which.
        finding: what follows.
        timed: what was timed; None where there was no time.
        power: the chance that there was to show a slowdown that matters; None of a baseline.
        figure_s: what taking a figure took, seconds.
        busy_share: share of a run's wall time during which the GPU worked; None where that is not known.
        note: information; may be empty.
    """

    clock: Clock
    finding: Finding
    timed: Timed | None = None
    power: float | None = None
    figure_s: float = 0.0
    busy_share: float | None = None
    note: str = ""

    def notes(self) -> list[str]:
        """Information on it."""
        bound = launch_bound(self.busy_share) if self.busy_share is not None else ""
        return [*filter(None, [self.note, bound]), *(conditions(self.timed) if self.timed else ())]

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
class Examination:
    """What is needed to judge a case.

    Attributes:
        bench: the search's workbench.
        settings: the gate's.
        cases: how many the whole run has.
        later: those that come after the one to be judged.
        budget: of the whole run.
        pictures: gives a cell's pictures.
        sessions: the case's recorded sessions.
        baseline_sessions: those of its cell's baseline.
        reference: what its speed is compared with, by clock; None where there is nothing.
        recording: whether a reference is recorded: timed for its whole share of the budget.
    """

    bench: Workbench
    settings: GateSettings
    cases: int
    later: tuple[GateCase, ...]
    budget: Budget
    pictures: Callable[[GateCase], CellPictures]
    sessions: tuple[Session, ...]
    baseline_sessions: tuple[Session, ...]
    reference: Callable[[Clock], Reference | None]
    recording: bool

    def examine(self, case: GateCase) -> Showing:
        """Judge a case.

        Raises:
            Exception: when the unaccelerated pipeline cannot be run, or memory runs out.
        """
        if self.budget.left_s <= 0 and not self.recording:
            return Showing((self._no_time("before this case"),), figures=(("power", 0.0),) if case.candidate else ())
        with ExitStack() as stack:
            baseline = stack.enter_context(self.bench.pipelines.generating(case.cell, {}))
            params = case.candidate.params if case.candidate else {}
            generate = stack.enter_context(self.bench.pipelines.generating(case.cell, params))
            pictures = self.pictures(case)
            batch_s = self._count(case, generate)
            quality, lpips, hidden = self._quality(case, generate, pictures)
            timer = CaseTimer(self.bench, case, baseline, generate)
            speeds = list(self._speeds(case, timer, pictures.batch_s + batch_s))
        name = "lpips" if case.candidate else "fingerprint_lpips"
        figures = {name: float(np.mean(lpips)), **speeds[0].figures()}
        figures |= {f"host_{key}": value for speed in speeds[1:] for key, value in speed.figures().items()}
        noted = [speed for speed in speeds if self._is_noted_only(speed)]
        return Showing(
            (*quality, *(speed.finding for speed in speeds if speed not in noted)),
            (
                *filter(None, [hidden]),
                *(note for speed in speeds for note in speed.notes()),
                *(f"host time is undecided: {speed.finding.text}" for speed in noted),
            ),
            self._session(case, speeds, lpips),
            tuple(figures.items()),
            tuple(
                run.total_s for speed in speeds[:1] if speed.timed for block in speed.timed.blocks for run in block.runs
            ),
        )

    def _count(self, case: GateCase, generate: Generate) -> float:
        """The first generation, which counts what the methods do; seconds of the batch."""
        batch = self.bench.batches(case.cell, "winner", case.entry.num_samples)[0]
        began = time.monotonic()
        with self.bench.pipelines.lock.generating():
            generate.counted(batch.prompts, batch.seeds)
        return time.monotonic() - began

    def _quality(
        self, case: GateCase, generate: Generate, pictures: CellPictures
    ) -> tuple[tuple[Finding, ...], tuple[float, ...], str]:
        """Findings, LPIPS by sample, and what rounding will hide; empty where nothing that matters."""
        drawn = self._recorded_lpips(case, self.baseline_sessions)
        changed = same_pictures(pictures.fingerprint, drawn, _PICTURES_TOLERANCE) if drawn else ""
        if case.candidate is None:
            finding = Finding("quality", "ok", "the same pictures as recorded")
            if changed:
                finding = Finding("quality", "regressed", f"{changed}; are its weights whole?")
            elif not drawn:
                finding = replace(finding, text="no pictures recorded to compare with")
            return (finding,), pictures.fingerprint, ""
        recorded = self._recorded_lpips(case, self.sessions) or (float(case.entry.lpips or 0.0),)
        found = losses(self.bench, case, generate, pictures, recorded)
        if changed:
            # Refused, not undecided: more time would not help, and a run of this case alone must not pass.
            why = f"LPIPS cannot be compared with golden's: {changed}; see {case.cell}-baseline"
            return (Finding("quality", "refused", why),), found.now, ""
        finding = quality_finding(found, self.settings.quality, speed_share(self.cases))
        hidden = hidden_loss(found, self.settings.quality) if self.recording else ""
        return (explain_by_pictures(finding, are_known=bool(drawn)),), found.now, hidden

    def _recorded_lpips(self, case: GateCase, sessions: tuple[Session, ...]) -> tuple[float, ...]:
        """Of the last of the sessions; none where that was of other samples than the case's."""
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        same = (sampling.seed, sampling.prompts_digest)
        return sessions[-1].lpips if sessions and (sessions[-1].seed, sessions[-1].prompts_digest) == same else ()

    def _speeds(self, case: GateCase, timer: CaseTimer, block_s: float) -> Iterator[Judged]:
        """By the clock that decides; of a launch-bound winner by the host's, too.

        Args:
            case: the case.
            timer: times it.
            block_s: a block of whole runs, seconds.
        """
        if timer.device_type != "cuda":
            yield self._judged(case, timer, wall_clock(timer.device_type), block_s)
            return
        lacking = why_no_device_time()
        if lacking or not (self.recording or case.candidate is None or self.reference(DEVICE)):
            yield replace(self._judged(case, timer, wall_clock("cuda"), block_s), note=lacking)
            return
        use = timer.gpu_use()
        began_s = self.budget.left_s
        yield replace(self._judged(case, timer, DEVICE, timer.block_s(DEVICE), use.fixed_s), busy_share=use.busy_share)
        if case.candidate and use.busy_share < LAUNCH_BOUND_SHARE and (self.recording or self.reference(HOST)):
            # Every later case keeps what this one's device time took.
            kept_s = (began_s - self.budget.left_s) * sum(other.cost / case.cost for other in self.later)
            yield self._host_judged(self._judged(case, timer, HOST, timer.block_s(HOST), kept_s=kept_s))

    def _judged(
        self,
        case: GateCase,
        timer: CaseTimer,
        clock: Clock,
        block_s: float,
        fixed_s: float = 0.0,
        kept_s: float = 0.0,
    ) -> Judged:
        """Timed by one clock.

        Args:
            case: the case.
            timer: times it.
            clock: to time it by.
            block_s: of a block by that clock, seconds.
            fixed_s: what surrounds the steps, by that clock.
            kept_s: of the budget for later cases, beside what they keep by this clock.
        """
        reference, slowdown = self.reference(clock), self._slowdown(clock)
        share = recordable if self.recording else affordable
        figures = share(case, self.later, self.budget.left_s - kept_s, block_s, clock.blocks)
        plan = design(case, reference, clock, self._tests, slowdown, figures, recording=self.recording)
        if plan is None and case.candidate is None:
            why = f"not timed against itself: the budget of {self.budget.seconds:.0f} s goes to the winners"
            return Judged(clock, Finding("speed", "ok", why))
        if plan is None:
            return Judged(clock, self._no_time("before a first look at the speed"), power=0.0)
        began = time.monotonic()
        timed = timer.until_certain(clock, plan, reference, fixed_s, to_the_end=self.recording)
        judged = Judged(
            clock,
            first_finding(timed, clock.words),
            timed,
            power(plan, reference, clock) if case.candidate else None,
            figure_s=(time.monotonic() - began) / len(timed.figures),
        )
        if reference is None:
            return judged
        found = speed_finding(timed, plan, reference, clock.words)
        finding, note = explain_by_times(found, timed, reference, clock.words)
        if case.candidate is None and finding.status != "ok":
            # Nothing is slower than itself: it is the measuring that is not sound, or too noisy.
            finding = Finding("speed", "inconclusive", f"the baseline against itself: {finding.text}")
        return replace(judged, finding=finding, note=note)

    def _host_judged(self, judged: Judged) -> Judged:
        """As a finding on the host, which fails no run unless that is asked for."""
        finding = replace(judged.finding, subject="host")
        if finding.status == "regressed" and not self.settings.host_fails:
            finding = replace(finding, status="warning")
        elif finding.status == "improved":
            finding = replace(finding, status="ok")
        return replace(judged, finding=finding)

    def _is_noted_only(self, judged: Judged) -> bool:
        """Whether the host could not be judged, which decides nothing unless that is asked for."""
        return judged.clock == HOST and judged.finding.status == "inconclusive" and not self.settings.host_fails

    def _slowdown(self, clock: Clock) -> float:
        return self.settings.host_slowdown if clock == HOST else self.settings.slowdown

    @property
    def _tests(self) -> int:
        """Of speed, that may fail the run: they share the false alarms that are allowed."""
        return self.cases * (2 if self.settings.host_fails else 1)

    def _session(self, case: GateCase, speeds: Sequence[Judged], lpips: tuple[float, ...]) -> Session | None:
        """To be recorded; None where nothing was timed."""
        main, *others = speeds
        if main.timed is None:
            return None
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        host = next((Speed(**speed.measured()) for speed in others if speed.timed), None)
        return Session(
            **main.measured(),
            lpips=tuple(float(loss) for loss in lpips),
            seed=sampling.seed,
            prompts_digest=sampling.prompts_digest,
            environment=self.bench.environment(case.cell).id,
            clock="device" if main.clock == DEVICE else "wall",
            host=host,
        )

    def _no_time(self, when: str) -> Finding:
        return Finding("speed", "inconclusive", f"the budget of {self.budget.seconds:.0f} s was spent {when}")
