"""One case of the gate: works as it should, is as good, is as fast; in that order, the cheap questions first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.gate.case_plan import Budget, GateCase, speed_share
from pytest_diffaccel.gate.clocks import DEVICE, Clock
from pytest_diffaccel.gate.judged_losses import (
    Scores,
    explain_by_pictures,
    hidden_loss,
    not_recorded,
    pictures_moved,
    quality_finding,
    same_pictures,
)
from pytest_diffaccel.gate.judged_speed import Judged, SpeedJudge, no_time
from pytest_diffaccel.gate.pictures import CellPictures, scores
from pytest_diffaccel.gate.reference import Reference, how_to_record
from pytest_diffaccel.gate.timing import CaseTimer, PlainRuns
from pytest_diffaccel.gate.verdict import Finding
from pytest_diffaccel.measure.busy_clock import KernelTimes
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.degenerate import USUAL_CAUSES, DegeneratePictures
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.records.gate_sessions import GateSession, MetricSamples, Speed
from pytest_diffaccel.search.workbench import Workbench
from pytest_diffaccel.settings.gate_options import GateSettings

if TYPE_CHECKING:
    from PIL.Image import Image

# Pictures whose distances moved by more than this are not drawn by the same weights; rounding moves them far less.
_PICTURES_TOLERANCE = 0.05
# By more than this they are told to have moved, which may be why a winner became worse.
_SEEN = 0.0005


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
        control_s: what its pictures' A/A control took, seconds.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    session: GateSession | None = None
    figures: tuple[tuple[str, float], ...] = ()
    rounds_s: tuple[float, ...] = ()
    timing_s: float = 0.0
    control_s: float = 0.0


@dataclass(frozen=True)
class _Quality:
    """What a case's pictures showed.

    Attributes:
        findings: at least one.
        lpips: per sample; of a baseline, its pictures' fingerprint.
        metrics: of a winner, what other metrics say, by name.
        hidden: what rounding will hide, in words.
        control_s: what the A/A control took, seconds.
    """

    findings: tuple[Finding, ...]
    lpips: tuple[float, ...]
    metrics: Mapping[str, MetricSamples] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    control_s: float = 0.0


@dataclass(frozen=True)
class Examination:
    """What is needed to judge a case.

    Attributes:
        bench: the search's workbench.
        settings: the gate's.
        metrics: those that winners are judged by, with their identities.
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
    metrics: Mapping[str, tuple[Metric, str]]
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
            MetricFault: when a metric fails.
            Exception: when the unaccelerated pipeline cannot be run, or memory runs out.
        """
        if self.budget.left_s <= 0 and not self.recording:
            return Showing((no_time(self.budget),), figures=(("power", 0.0),) if case.candidate else ())
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
            first, batch_s = self._count(case, generate) if case.candidate else ([], pictures.batch_s)
            quality = self._quality(case, generate, pictures, first)
            plain = self.plain(case)
            timer = CaseTimer(self.bench, case, baseline, generate, plain, KernelTimes(beside=plain.kernels))
            speeds = self._speeds(case, timer, pictures.batch_s + batch_s)
        name = "lpips" if case.candidate else "fingerprint_lpips"
        figures = {name: float(np.mean(quality.lpips))}
        figures |= {f"metric_{name}": float(np.mean(known.values)) for name, known in quality.metrics.items()}
        figures |= speeds[0].figures()
        figures |= {f"host_{key}": value for speed in speeds[1:] for key, value in speed.figures().items()}
        return Showing(
            (*quality.findings, *(finding for speed in speeds for finding in speed.findings)),
            (*quality.hidden, *(note for speed in speeds for note in speed.notes())),
            self._session(case, speeds, quality),
            tuple(figures.items()),
            tuple(
                run.total_s for speed in speeds[:1] if speed.timed for block in speed.timed.blocks for run in block.runs
            ),
            sum(speed.figure_s * len(speed.timed.figures) for speed in speeds if speed.timed),
            quality.control_s,
        )

    def _count(self, case: GateCase, generate: Generate) -> tuple[list[Image], float]:
        """The first generation, which counts what the methods do: the first batch's pictures, and its seconds."""
        batch = self.bench.batches(case.cell, "winner", case.entry.num_samples)[0]
        began = time.monotonic()
        with self.bench.pipelines.lock.generating():
            images = generate.counted(batch.prompts, batch.seeds)
        return images, time.monotonic() - began

    def _quality(self, case: GateCase, generate: Generate, pictures: CellPictures, first: Sequence[Image]) -> _Quality:
        """Whether a case's pictures are as they were; ``first`` are those of a winner's first batch."""
        drawn = self._recorded(self.baseline_sessions, case)
        moved = pictures_moved(pictures.fingerprint, drawn[-1].lpips) if drawn else 0.0
        changed = same_pictures(moved, _PICTURES_TOLERANCE)
        if case.candidate is None:
            finding = Finding("quality", "ok", "the same pictures as recorded")
            if moved > _SEEN:
                finding = replace(finding, text=f"the pictures moved by {moved:.1%}, no more than rounding may do")
            if changed:
                finding = Finding("quality", "regressed", f"{changed}; are its weights whole?")
            elif not drawn:
                finding = replace(finding, text="no pictures recorded to compare with")
            return _Quality((finding,), pictures.fingerprint)
        then = [(metric, self._then(case, metric, identity)) for metric, identity in self.metrics.values()]
        found, control_s = scores(self.bench, case, generate, pictures, then, first=first, recording=self.recording)
        now = {one.metric.name: MetricSamples(self.metrics[one.metric.name][1], one.now) for one in found}
        lpips = now.pop(LPIPS).values
        if changed:
            # Refused, not undecided: more time would not help, and a run of this case alone must not pass.
            names = ", ".join(one.title for one in found)
            why = f"{names} cannot be compared with golden's: {changed}; see {case.cell}-baseline"
            return _Quality((Finding("quality", "refused", why),), lpips, now, control_s=control_s)
        findings = tuple(self._finding(case, one, are_known=bool(drawn)) for one in found)
        if moved > _SEEN:
            also = f"; the unaccelerated pictures moved by {moved:.1%} too"
            findings = tuple(
                replace(one, text=f"{one.text}{also}") if one.status == "regressed" else one for one in findings
            )
        hidden = [hidden_loss(one, self.settings.quality[one.metric.name]) for one in found if self.recording]
        return _Quality(findings, lpips, now, tuple(filter(None, hidden)), control_s)

    def _finding(self, case: GateCase, found: Scores, *, are_known: bool) -> Finding:
        """Of one metric; ``are_known`` says whether the unaccelerated pictures are recorded."""
        smallest = self.settings.quality[found.metric.name]
        if not found.then:
            others = [known.identity for one in self.sessions if (known := one.metrics.get(found.metric.name))]
            why = not_recorded(found.title, others, self.metrics[found.metric.name][1])
            text = f"{found.title} {found.shown(float(np.mean(found.now)))}; {why}"
            if self.recording:
                return Finding("quality", "ok", text, metric=found.subject)
            return Finding("quality", "inconclusive", text, metric=found.subject, fix=how_to_record(self.settings))
        share = speed_share(self.cases) / len(self.metrics)
        return explain_by_pictures(quality_finding(found, smallest, share), are_known=are_known)

    def _then(self, case: GateCase, metric: Metric, identity: str) -> tuple[float, ...]:
        """What is recorded of a metric of a case: by sample, else golden's mean; none where neither is."""
        sessions = self._recorded(self.sessions, case)
        if metric.name == LPIPS:
            return sessions[-1].lpips if sessions else (float(case.entry.lpips or 0.0),)
        known = [found for one in sessions if (found := one.metrics.get(metric.name)) and found.identity == identity]
        if known:
            return known[-1].values
        # Golden does not say which weights scored: only a metric without any can be compared with its mean.
        mean = (case.entry.metrics or {}).get(metric.name) if identity == metric.name else None
        return (mean.value,) if mean else ()

    def _recorded(self, sessions: Sequence[GateSession], case: GateCase) -> list[GateSession]:
        """Those of the sessions that were of the case's samples, if the last one was; oldest first."""
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        same = (sampling.seed, sampling.prompts_digest)
        found = [one for one in sessions if (one.seed, one.prompts_digest) == same]
        return found if found and found[-1] is sessions[-1] else []

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

    def _session(self, case: GateCase, speeds: Sequence[Judged], quality: _Quality) -> GateSession | None:
        """To be recorded; None where nothing was timed."""
        main, *others = speeds
        if main.timed is None:
            return None
        sampling = self.bench.sampling(case.cell, "winner", case.entry.num_samples)
        host = next((Speed(**other.measured()) for other in others if other.is_reference), None)
        return GateSession(
            **main.measured(),
            lpips=tuple(float(loss) for loss in quality.lpips),
            seed=sampling.seed,
            prompts_digest=sampling.prompts_digest,
            environment=self.bench.environment(case.cell).id,
            clock="device" if main.clock == DEVICE else "wall",
            host=host,
            metrics=quality.metrics,
        )
