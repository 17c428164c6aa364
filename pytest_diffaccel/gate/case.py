"""One case of the gate: works as it should, is as good, is as fast; in that order, the cheap questions first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.gate.conditions import conditions, launch_bound
from pytest_diffaccel.gate.figures import blocks_a_figure
from pytest_diffaccel.gate.pictures import CellPictures, losses
from pytest_diffaccel.gate.plan import Budget, GateCase, affordable, design, expected_sd, recordable, speed_share
from pytest_diffaccel.gate.quality import explain_by_pictures, quality_finding, same_pictures
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import robust_mean
from pytest_diffaccel.gate.speed import Timed, explain_by_times, speed_finding, time_until_certain
from pytest_diffaccel.gate.verdict import Finding
from pytest_diffaccel.gate_options import GateSettings
from pytest_diffaccel.measure.blocks import TimedRun, order_seed, run_blocks
from pytest_diffaccel.measure.busy_clock import busy
from pytest_diffaccel.measure.clock import timed as timed_run
from pytest_diffaccel.measure.disturbance import watch_machine
from pytest_diffaccel.measure.measurement import RunTiming
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.records.reference import Session
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
        reference: what its speed is compared with.
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
    reference: Reference
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
            quality, lpips = self._quality(case, generate, pictures)
            timed, speed, power, notes = self._speed(case, baseline, generate, pictures.batch_s + batch_s)
            share = self._busy_share(case, generate, timed) if timed else None
        figures = (
            [("lpips", float(np.mean(lpips)))] if case.candidate else [("fingerprint_lpips", float(np.mean(lpips)))]
        )
        if power is not None:
            figures.append(("power", power))
        if timed is None:
            return Showing((*quality, speed), notes, None, tuple(figures))
        estimate = robust_mean(timed.log_speedups)
        figures += [
            ("speedup", math.exp(float(estimate.mean))),
            ("baseline_s", timed.baseline_s),
            ("blocks", len(timed.blocks)),
        ]
        if share is not None:
            figures.append(("gpu_busy_share", share))
            notes = (*notes, *filter(None, [launch_bound(share)]))
        rounds_s = tuple(run.total_s for block in timed.blocks for run in block.runs)
        return Showing((*quality, speed), notes, self._session(case, timed, lpips), tuple(figures), rounds_s)

    def _count(self, case: GateCase, generate: Generate) -> float:
        """The first generation, which counts what the methods do; seconds of the batch."""
        batch = self.bench.batches(case.cell, "winner", case.entry.num_samples)[0]
        began = time.monotonic()
        with self.bench.pipelines.lock.generating():
            generate.counted(batch.prompts, batch.seeds)
        return time.monotonic() - began

    def _quality(
        self, case: GateCase, generate: Generate, pictures: CellPictures
    ) -> tuple[tuple[Finding, ...], tuple[float, ...]]:
        """Findings, and LPIPS by sample."""
        drawn = self._recorded_lpips(case, self.baseline_sessions)
        changed = same_pictures(pictures.fingerprint, drawn, _PICTURES_TOLERANCE) if drawn else ""
        if case.candidate is None:
            finding = Finding("quality", "ok", "the same pictures as recorded")
            if changed:
                finding = Finding("quality", "regressed", f"{changed}; are its weights whole?")
            elif not drawn:
                finding = replace(finding, text="no pictures recorded to compare with")
            return (finding,), pictures.fingerprint
        recorded = self._recorded_lpips(case, self.sessions) or (float(case.entry.lpips or 0.0),)
        found = losses(self.bench, case, generate, pictures, recorded)
        if changed:
            # Refused, not undecided: more time would not help, and a run of this case alone must not pass.
            why = f"LPIPS cannot be compared with golden's: {changed}; see {case.cell}-baseline"
            return (Finding("quality", "refused", why),), found.now
        finding = quality_finding(found, self.settings.quality, speed_share(self.cases))
        return (explain_by_pictures(finding, are_known=bool(drawn)),), found.now

    def _recorded_lpips(self, case: GateCase, sessions: tuple[Session, ...]) -> tuple[float, ...]:
        """Of the last of the sessions; none where that was of other samples than the case's."""
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        same = (sampling.seed, sampling.prompts_digest)
        return sessions[-1].lpips if sessions and (sessions[-1].seed, sessions[-1].prompts_digest) == same else ()

    def _speed(
        self, case: GateCase, baseline: Generate, generate: Generate, block_s: float
    ) -> tuple[Timed | None, Finding, float | None, tuple[str, ...]]:
        """What was timed, the finding, the chance that there was to show a slowdown that matters, notes."""
        device = baseline.pipeline.device
        size = blocks_a_figure(device.type)
        share = recordable if self.recording else affordable
        figures = share(case, self.later, self.budget.left_s, block_s, size)
        plan = design(
            *(case, self.reference, device.type, self.cases, self.settings.slowdown, figures), recording=self.recording
        )
        if plan is None and case.candidate is None:
            why = f"not timed against itself: the budget of {self.budget.seconds:.0f} s goes to the winners"
            return None, Finding("speed", "ok", why), None, ()
        if plan is None:
            return None, self._no_time("before a first look at the speed"), 0.0, ()
        power = plan.power(expected_sd(self.reference), self.reference.error) if case.candidate else None
        runs = [self._run(case, one) for one in (baseline, generate)]
        with self.bench.pipelines.lock.timing():
            rows = run_blocks(
                runs[0],
                runs[1:],
                plan.most * size,
                seed=order_seed(self.bench.settings.seed, [case.key], 0),
                watch=watch_machine(device, computing_threads(device)),
            )
            timed = time_until_certain((row[0] for row in rows), size, plan, self.reference, to_the_end=self.recording)
        finding, note = explain_by_times(speed_finding(timed, plan, self.reference), timed, self.reference)
        if case.candidate is None and finding.status != "ok":
            # Nothing is slower than itself: it is the measuring that is not sound, or too noisy.
            finding = Finding("speed", "inconclusive", f"the baseline against itself: {finding.text}")
        return timed, finding, power, (*filter(None, [note]), *conditions(timed))

    def _busy_share(self, case: GateCase, generate: Generate, timed: Timed) -> float | None:
        """Share of a run's wall time during which the GPU worked; None without a GPU."""
        if generate.pipeline.device.type != "cuda":
            return None
        batch = self.bench.batches(case.cell, "winner", case.entry.num_samples)[0]
        with self.bench.pipelines.lock.timing():
            _, device = busy(generate, batch.prompts, batch.seeds)
        return device.total_s / float(np.median([block.runs[0].total_s for block in timed.blocks]))

    def _run(self, case: GateCase, generate: Generate) -> TimedRun:
        batches = self.bench.batches(case.cell, "winner", case.entry.num_samples)
        full = [batch for batch in batches if len(batch.seeds) == len(batches[0].seeds)]

        def one(index: int) -> RunTiming:
            batch = full[index % len(full)]
            return timed_run(generate, batch.prompts, batch.seeds)[1]

        return one

    def _session(self, case: GateCase, timed: Timed, lpips: tuple[float, ...]) -> Session:
        estimate = robust_mean(timed.log_speedups)
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        return Session(
            log_speedup=float(estimate.mean),
            standard_error=float(estimate.error),
            df=float(estimate.df),
            figure_sd=timed.figure_sd,
            baseline_s=timed.baseline_s,
            lpips=tuple(float(one) for one in lpips),
            seed=sampling.seed,
            prompts_digest=sampling.prompts_digest,
            environment=self.bench.environment(case.cell).id,
        )

    def _no_time(self, when: str) -> Finding:
        return Finding("speed", "inconclusive", f"the budget of {self.budget.seconds:.0f} s was spent {when}")
