"""One gate run as the plugin or a script drives it: golden records in, verdicts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct, StepCountError
from pytest_diffaccel.gate.case_plan import Budget, GateCase, gate_cases
from pytest_diffaccel.gate.clocks import Clock, wall_clock
from pytest_diffaccel.gate.environments import Comparison, refusal
from pytest_diffaccel.gate.prospects import Prospect, least_to_record_s, prospects, seconds_beside
from pytest_diffaccel.gate.reference import Reference, learnt_session_sd
from pytest_diffaccel.gate.verdict import Finding, GateVerdict, Verdict
from pytest_diffaccel.matrix import Cell
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.time_limit import time_limit
from pytest_diffaccel.pipes import described
from pytest_diffaccel.records.gate_sessions import GateSession, Speed, read_references
from pytest_diffaccel.records.golden_file import Golden, incomplete
from pytest_diffaccel.search.search_run import SearchRun, SearchSession
from pytest_diffaccel.settings.gate_options import GateSettings
from pytest_diffaccel.settings.options import benches_command, options_of
from pytest_diffaccel.settings.search_settings import Settings

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.gate.case import Examination, Showing
    from pytest_diffaccel.gate.pictures import CellPictures
    from pytest_diffaccel.gate.timing import PlainRuns
    from pytest_diffaccel.measure.metrics.base import Metric
    from pytest_diffaccel.measure.metrics.registry import MetricRegistry

# Verdicts on what is not as it should be: no later run is to be compared with that.
_NO_REFERENCE = ("regressed", "refused")


class GateRun:
    """A gate run with its settings. Nothing heavy is imported before the first case.

    Attributes:
        settings: what to judge and how; samples and batches are as golden was recorded.
        gate: the gate's own settings.
        cases: most informative first; none when golden has no winner in the chosen cells.
        metrics: those known.

    Raises:
        ValueError: when the golden file or what lies beside it cannot be read, its records have several batch sizes, or
            a metric decided them that is not known.
    """

    def __init__(
        self,
        settings: Settings,
        gate: GateSettings,
        registry: Registry,
        session: SearchSession | None = None,
        metrics: MetricRegistry | None = None,
    ) -> None:
        self._golden = Golden.read(settings.golden)
        # What is recorded afresh is wanted, however it differs from what was recorded before.
        self._sessions = {} if settings.update_golden and settings.fresh else read_references(settings.golden)
        self.cases = gate_cases(self._golden.entries, settings.cells, settings.accelerators, list(self._sessions))
        sizes = sorted({case.entry.batch_size for case in self.cases})
        if len(sizes) > 1:
            raise ValueError(
                f"{settings.golden} has records of several batch sizes ({', '.join(map(str, sizes))}), which cannot be "
                "judged in one run: choose cells with --pipe --sched --steps"
            )
        self.settings = replace(settings, batch_size=sizes[0] if sizes else settings.batch_size)
        self._registry = registry
        # What winners are is what golden's methods had learnt, whatever this environment would tell them.
        self._search = SearchRun(self.settings, registry.learning(self._golden.lessons), session, metrics)
        self.metrics = self._search.metrics
        self.gate = replace(gate, quality=self._judged_quality(gate.quality))
        self._baselines = {case.cell: case for case in self.cases if case.candidate is None}
        self._pictures: dict[tuple[Cell, int], CellPictures] = {}
        self._plain: dict[tuple[Cell, int], PlainRuns] = {}

    def _judged_quality(self, named: Mapping[str, float]) -> dict[str, float]:
        """What is judged of pictures: what is named, and what decided golden, by as much as LPIPS."""
        decided = sorted({case.entry.quality for case in self.cases if case.entry.quality})
        if unknown := [name for name in decided if name not in self.metrics.names]:
            raise ValueError(
                f"{self.settings.golden} was decided by {', '.join(unknown)}, which is no metric here: register it "
                "(docs/own_metric.md), or choose other cells"
            )
        return {**dict.fromkeys(decided, named[LPIPS]), **named}

    def keep(self, keys: Collection[str]) -> None:
        """Judge no cases but these, which share the budget; called before the first.

        Args:
            keys: of the cases that the session has left after ``-k``, ``--lf`` and the like.
        """
        self.cases = [case for case in self.cases if case.key in keys]

    @property
    def holds_winners(self) -> bool:
        """Whether golden has winners of the chosen cells, whichever of them the session has."""
        return bool(self._baselines)

    @property
    def recording(self) -> bool:
        """Whether references are recorded."""
        return self.settings.update_golden

    @cached_property
    def without_reference(self) -> frozenset[str]:
        """Keys of the winners that can only be compared with golden's interval."""
        return frozenset(case.key for case in self.cases if case.candidate and case.subject not in self._sessions)

    def least_to_record_s(self, found: Mapping[str, GateSession]) -> float | None:
        """Seconds of timing that recording takes whatever the budget is; None where nothing tells.

        Args:
            found: what this run has recorded so far, by subject; earlier sessions tell where it has not.
        """
        return least_to_record_s(self.cases, {**{name: known[-1] for name, known in self._sessions.items()}, **found})

    @cached_property
    def without_metric(self) -> dict[str, int]:
        """For how many winners neither golden nor references hold a metric that is to be judged, by its name."""
        counts = Counter(
            name
            for case in self.cases
            if case.candidate is not None
            for name in self.gate.quality.keys() - {LPIPS}
            if not any(name in session.metrics for session in self._sessions.get(case.subject, ()))
            and (self.metrics[name].weights or name not in (case.entry.metrics or {}))
        )
        return {name: counts[name] for name in self.gate.quality if counts[name]}

    @cached_property
    def prospects(self) -> list[Prospect]:
        """What this run will be able to show of each winner with a reference, by each of its clocks."""
        wall = wall_clock("cpu" if self.settings.gpus is None else "cuda")
        return prospects(self.cases, self._sessions, self._reference, self.gate, wall)

    @cached_property
    def _budget(self) -> Budget:
        return Budget(self.gate.budget_s)

    def judge(self, case: GateCase) -> GateVerdict:
        """Judge a case.

        Raises:
            CaseTimeout: after ``--case-timeout``.
            MetricFault: when a metric cannot be computed here, or fails.
            Exception: when the unaccelerated pipeline cannot be run, or memory runs out.
        """
        left_s = self._budget.left_s
        try:
            with time_limit(self.settings.case_timeout_s):
                verdict, showing = self._judge(case)
        except Exception:
            self._search.bench.pipelines.unload()
            raise
        seconds = left_s - self._budget.left_s
        session = showing.session if showing and self.recording else None
        if showing and session:
            beside_s = max(0.0, seconds - showing.timing_s - showing.control_s)
            session = replace(session, beside_s=beside_s, control_s=showing.control_s)
        return GateVerdict(
            cell=case.cell,
            candidate=case.candidate,
            case=case.key,
            targets=case.targets,
            verdict=verdict,
            rounds_s=showing.rounds_s if showing else (),
            sessions={case.subject: session} if session and verdict.status not in _NO_REFERENCE else {},
            seconds=seconds,
        )

    def _judge(self, case: GateCase) -> tuple[Verdict, Showing | None]:
        from pytest_diffaccel.accelerators.base import InvalidParams
        from pytest_diffaccel.measure.degenerate import DegeneratePictures
        from pytest_diffaccel.models.schedulers import UnfollowedTimesteps

        bench = self._search.bench
        golden = self._golden.environment_of(case.entry)
        with self._budget.start():
            compared = Comparison.between(golden, bench.environment(case.cell)) if golden else Comparison((), ())
        if compared.refused:
            text = refusal(compared, self.settings.golden, case.cell, self.gate.place)
        else:
            text = self._unlearnt(case)
        if text:
            return Verdict((Finding("environment", "refused", text),)), None
        try:
            showing = self._examination(case).examine(case)
        except (MethodDidNotAct, StepCountError, InvalidParams, UnfollowedTimesteps, DegeneratePictures) as error:
            bench.pipelines.unload()
            subject = "quality" if isinstance(error, DegeneratePictures) else "function"
            return Verdict((Finding(subject, "regressed", str(error)),), compared.causes), None
        return Verdict(showing.findings, compared.causes, showing.notes, showing.figures), showing

    def _unlearnt(self, case: GateCase) -> str:
        """Why golden does not say all that a case is, in words: what its methods had learnt; empty where it does."""
        params, pipe = case.candidate.params if case.candidate else {}, described(case.cell.pipe)
        learning = [method for method in self._registry.methods if method.name in params and method.learns(pipe)]
        try:
            known = self._golden.lessons(case.cell, [method.name for method in learning])
        except ValueError as error:
            return str(error)
        lacking = [f"{method.learns(pipe)} ({method.name})" for method in learning if method.name not in known]
        if not lacking:
            return ""
        untold = f"does not tell {', '.join(lacking)} in {case.cell}"
        again = benches_command(*options_of(case.cell), "--update-golden", *self.gate.place)
        return incomplete(self.settings.golden, untold, again)

    @cached_property
    def _judged_by(self) -> dict[str, tuple[Metric, str]]:
        """The metrics that winners are judged by, ready to score, with identities, by name."""
        metrics = [self.metrics[name] for name in self.gate.quality]
        for metric in metrics:
            metric.prepare("cpu")
        return {metric.name: (metric, metric.identity) for metric in metrics}

    def _examination(self, case: GateCase) -> Examination:
        from pytest_diffaccel.gate.case import Examination

        bench = self._search.bench
        baseline = self._baselines[case.cell]
        later = tuple(self.cases[self.cases.index(case) + 1 :])
        with_control = self.recording or self._has_moved(case, baseline)
        with self._budget.start():
            metrics = self._judged_by
        return Examination(
            bench,
            self.gate,
            metrics,
            len(self.cases),
            later,
            seconds_beside(later, self._sessions, with_control=with_control) or 0.0,
            self._budget,
            self._cell_pictures,
            self._plain_runs,
            self._sessions.get(case.subject, ()),
            self._sessions.get(baseline.subject, ()),
            partial(self._reference, case),
            self.recording,
        )

    def _has_moved(self, case: GateCase, baseline: GateCase) -> bool:
        """Whether this run has drawn the cell's unaccelerated pictures, and they are others than were recorded."""
        from pytest_diffaccel.gate.judged_losses import all_equal

        drawn, recorded = self._pictures.get((case.cell, case.entry.num_samples)), self._sessions.get(baseline.subject)
        return bool(drawn and recorded and not all_equal(drawn.fingerprint, recorded[-1].lpips))

    def _reference(self, case: GateCase, clock: Clock) -> Reference | None:
        """What a case is compared with by a clock; None where there is nothing."""
        sessions = {subject: _by(clock, found) for subject, found in self._sessions.items()}
        session_sd = learnt_session_sd(sessions.values(), clock.session_sd, clock.lasting_share)
        own = sessions.get(case.subject, [])
        known = Reference.from_sessions(own, session_sd, clock.lasting_share) if own else None
        if case.candidate is None:
            return replace(Reference.of_baseline(), baseline_s=known.baseline_s if known else None)
        # Golden's speed-ups are of wall time.
        return known or (Reference.from_golden(case.entry) if clock.name == "wall" else None)

    @property
    def _cell_pictures(self) -> Callable[[GateCase], CellPictures]:
        def get(case: GateCase) -> CellPictures:
            from pytest_diffaccel.gate.pictures import CellPictures

            place = (case.cell, case.entry.num_samples)
            if place not in self._pictures:
                self._pictures[place] = CellPictures.make(self._search.bench, case)
            return self._pictures[place]

        return get

    @property
    def _plain_runs(self) -> Callable[[GateCase], PlainRuns]:
        from pytest_diffaccel.gate.timing import PlainRuns

        return lambda case: self._plain.setdefault((case.cell, case.entry.num_samples), PlainRuns())

    def close(self) -> None:
        """Free what the run holds."""
        self._search.close()


def _by(clock: Clock, sessions: Sequence[GateSession]) -> list[Speed]:
    return [speed for session in sessions if (speed := session.by(clock.name)) is not None]
