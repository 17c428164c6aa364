"""One case of the gate: works as it should, is as good, is as fast; in that order, the cheap questions first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.gate.case_plan import Budget, GateCase, speed_share
from pytest_diffaccel.gate.clocks import DEVICE, Clock
from pytest_diffaccel.gate.judged_losses import explain_by_pictures, hidden_loss, quality_finding, same_pictures
from pytest_diffaccel.gate.judged_speed import Judged, SpeedJudge, no_time
from pytest_diffaccel.gate.pictures import CellPictures, losses
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.timing import CaseTimer, PlainRuns
from pytest_diffaccel.gate.verdict import Finding
from pytest_diffaccel.measure.degenerate import USUAL_CAUSES, DegeneratePictures
from pytest_diffaccel.records.gate_sessions import GateSession, Speed
from pytest_diffaccel.search.workbench import Workbench
from pytest_diffaccel.settings.gate_options import GateSettings

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
        timing_s: what taking its figures took, by all clocks, seconds.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    session: GateSession | None = None
    figures: tuple[tuple[str, float], ...] = ()
    rounds_s: tuple[float, ...] = ()
    timing_s: float = 0.0


@dataclass(frozen=True)
class Examination:
    """What is needed to judge a case.

    Attributes:
        bench: the search's workbench.
        settings: the gate's.
        cases: how many the whole run has.
        later: those that come after the one to be judged.
        later_beside_s: what those take beside timing, seconds; 0 where no reference tells.
        budget: of the whole run.
        pictures: gives a cell's pictures.
        plain: what is known of a cell's unaccelerated runs.
        sessions: the case's recorded sessions.
        baseline_sessions: those of its cell's baseline.
        reference: what its speed is compared with, by clock; None where there is nothing.
        recording: whether a reference is recorded: timed for its whole share of the budget.
    """

    bench: Workbench
    settings: GateSettings
    cases: int
    later: tuple[GateCase, ...]
    later_beside_s: float
    budget: Budget
    pictures: Callable[[GateCase], CellPictures]
    plain: Callable[[GateCase], PlainRuns]
    sessions: tuple[GateSession, ...]
    baseline_sessions: tuple[GateSession, ...]
    reference: Callable[[Clock], Reference | None]
    recording: bool

    def examine(self, case: GateCase) -> Showing:
        """Judge a case.

        Raises:
            DegeneratePictures: when pictures, unaccelerated or the case's own, say nothing.
            Exception: when the unaccelerated pipeline cannot be run, or memory runs out.
        """
        if self.budget.left_s <= 0 and not self.recording:
            return Showing(
                (no_time(self.budget, "before this case"),), figures=(("power", 0.0),) if case.candidate else ()
            )
        with self.budget.start():
            self.bench.pipelines.of(case.cell)
        with ExitStack() as stack:
            baseline = stack.enter_context(self.bench.pipelines.generating(case.cell, {}))
            params = case.candidate.params if case.candidate else {}
            generate = stack.enter_context(self.bench.pipelines.generating(case.cell, params))
            pictures = self.pictures(case)
            if pictures.fault:
                raise DegeneratePictures(f"the unaccelerated pipeline draws nothing: {pictures.fault}. {USUAL_CAUSES}")
            # What the unaccelerated pipeline does was counted when its pictures were drawn.
            batch_s = self._count(case, generate) if case.candidate else pictures.batch_s
            quality, lpips, hidden = self._quality(case, generate, pictures)
            timer = CaseTimer(self.bench, case, baseline, generate, self.plain(case))
            speeds = self._speeds(case, timer, pictures.batch_s + batch_s)
        name = "lpips" if case.candidate else "fingerprint_lpips"
        figures = {name: float(np.mean(lpips)), **speeds[0].figures()}
        figures |= {f"host_{key}": value for speed in speeds[1:] for key, value in speed.figures().items()}
        return Showing(
            (*quality, *(finding for speed in speeds for finding in speed.findings)),
            (*filter(None, [hidden]), *(note for speed in speeds for note in speed.notes())),
            self._session(case, speeds, lpips),
            tuple(figures.items()),
            tuple(
                run.total_s for speed in speeds[:1] if speed.timed for block in speed.timed.blocks for run in block.runs
            ),
            sum(speed.figure_s * len(speed.timed.figures) for speed in speeds if speed.timed),
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

    def _recorded_lpips(self, case: GateCase, sessions: tuple[GateSession, ...]) -> tuple[float, ...]:
        """Of the last of the sessions; none where that was of other samples than the case's."""
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        same = (sampling.seed, sampling.prompts_digest)
        return sessions[-1].lpips if sessions and (sessions[-1].seed, sessions[-1].prompts_digest) == same else ()

    def _speeds(self, case: GateCase, timer: CaseTimer, block_s: float) -> list[Judged]:
        plan = SpeedJudge(
            case,
            timer,
            self.settings,
            self.cases,
            self.later,
            self.budget,
            self.reference,
            recording=self.recording,
            later_beside_s=self.later_beside_s,
        )
        return list(plan.by_its_clocks(block_s))

    def _session(self, case: GateCase, speeds: Sequence[Judged], lpips: tuple[float, ...]) -> GateSession | None:
        """To be recorded; None where nothing was timed."""
        main, *others = speeds
        if main.timed is None:
            return None
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        host = next((Speed(**other.measured()) for other in others if other.is_reference), None)
        return GateSession(
            **main.measured(),
            lpips=tuple(float(loss) for loss in lpips),
            seed=sampling.seed,
            prompts_digest=sampling.prompts_digest,
            environment=self.bench.environment(case.cell).id,
            clock="device" if main.clock == DEVICE else "wall",
            host=host,
        )
