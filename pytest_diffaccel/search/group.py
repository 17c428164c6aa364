"""A group as a search with a pipeline sees it: its plan, its evaluations, its race."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.matrix import Candidate, Cell, Group
from pytest_diffaccel.measure.measurement import Measurement, Sampling
from pytest_diffaccel.measure.time_limit import time_limit
from pytest_diffaccel.records.contents import GroupState
from pytest_diffaccel.search.budget import TimeIsUp
from pytest_diffaccel.search.calibrate.calibration import ensure_calibrated
from pytest_diffaccel.search.decide.contenders import Contenders
from pytest_diffaccel.search.decide.plan import Plan
from pytest_diffaccel.search.decide.racing import PROMISING, Explored, explore, settle, space
from pytest_diffaccel.search.evaluate.attempt import evaluate, note_failure
from pytest_diffaccel.search.evaluate.evaluation import extend
from pytest_diffaccel.search.workbench import Workbench

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupSearch:
    """The search in a group, on a workbench; a :class:`.racing.Track`.

    Attributes:
        bench: the search's workbench.
        cell: the cell.
        accelerator: the accelerator's name.
    """

    bench: Workbench
    cell: Cell
    accelerator: str

    def plan(self) -> Plan:
        """The group as far as it is known now; the same object as long as nothing else is known.

        Each of hundreds of cases that are skipped asks for it.
        """
        known, group = self.bench.known(self.cell), Group(self.cell, self.accelerator)
        barred, registry = self.bench.secondary.bars(self.cell, self.accelerator), self._registry
        plan: Plan | None = known.derived.get(group)
        if plan is None or (plan.barred, plan.registry) != (barred, registry):
            plan = known.derived[group] = Plan(
                registry=registry,
                accelerator=self._accelerator,
                cell=self.cell,
                costs=known.costs,
                evaluated=known.losses(self.cell),
                max_loss=self.bench.settings.quality.max_loss,
                first=self._first_samples,
                barred=barred,
                quality=self.bench.settings.quality,
                by_mean=self.bench.settings.by_mean,
            )
        return plan

    @property
    def _first_samples(self) -> int:
        return self.bench.first_samples(self.cell, self.accelerator)

    def evaluate(self, candidate: Candidate) -> None:
        """Measure a candidate on its first samples; raises what :func:`.attempt.evaluate` raises."""
        self.measure(candidate)

    def measure(self, candidate: Candidate) -> Measurement:
        """Measure a candidate on its first samples, timed in an exhaustive search only; raises as :meth:`evaluate`."""
        if self.is_done:
            self._keep("reopened")
        # What is stored of a candidate is of the wall clock, whichever decides.
        by_wall = self.bench.known(self.cell).costs_by("wall")
        predicted = None if self.bench.settings.exhaustive else by_wall.speedups([candidate])[0]
        return evaluate(self.bench, candidate, predicted)

    def extend(self, candidate: Candidate, num_samples: int) -> None:
        """Measure an evaluated candidate on more samples; one that fails now is out of the race, and the rest go on.

        Raises:
            Unavailable: when something that measuring needs is missing.
            CudaBroken: when no candidate after this one can be measured by this process.
        """
        known = self.bench.known(self.cell).find(candidate)
        if known is None:
            return
        # What a case may take is for its first samples.
        most_s, more = self.bench.settings.case_timeout_s, num_samples - known.sampling.num_samples
        try:
            with time_limit(most_s and most_s * max(1.0, more / self._first_samples)):
                made = extend(self.bench, known, num_samples)
        except Exception as error:
            explained = note_failure(self.bench, candidate, error)
            _LOG.warning("%s fails with more samples: %s", candidate.key, explained)
        else:
            self.bench.keep(made)

    @property
    def borderline(self) -> list[Candidate]:
        """Evaluated candidates that may win a target if they surely reach it, which timing may show."""
        known = self.plan()
        return Contenders(known.options, known.max_loss, known.first, self.bench.settings.num_samples).borderline()

    def race(self, time_is_up: TimeIsUp) -> Explored:
        """Evaluate whatever else may win, and tell the contenders apart, until the group's time is up.

        What an earlier run finished is not begun again: the winners' own blocks would tell a little more each time.
        Nothing is measured where the model can take none of the group's cases.
        """
        explored = Explored(0, 0)
        if self._state in (None, "reopened") and any(map(self._is_taken, self.cases)):
            ensure_calibrated(self.bench, self.cell)
            explored = explore(self, self._open_candidates(), PROMISING, len(self.cases), time_is_up)
            if not explored.left:
                self._keep("explored")
        self.settle(time_is_up)
        return explored

    def settle(self, time_is_up: TimeIsUp) -> None:
        """Tell contenders apart by more samples, unless an earlier run found the winners."""
        if not self.is_done and not self.bench.settings.exhaustive:
            settle(self, self.bench.settings.num_samples, time_is_up)

    def look_further(self, time_is_up: TimeIsUp) -> Explored:
        """Evaluate what may win now that more is known; what would have lost to what a bound bars was passed over."""
        if self.bench.settings.exhaustive:
            return Explored(0, 0)
        explored = explore(self, self._open_candidates(), PROMISING, len(self.cases), time_is_up)
        if explored.left:
            self._keep("reopened")
        self.settle(time_is_up)
        return explored

    @property
    def targets_left(self) -> set[float]:
        """Targets that nothing evaluated reaches, and something promises to by what is known of speeds now.

        None of a group that an earlier run finished, or where this process does not know what its steps cost.
        """
        if self.bench.settings.exhaustive or self.is_done or self.cell.pipe not in self.bench.calibrations:
            return set()
        return self.plan().targets_left(self._open_candidates())

    def finish(self) -> None:
        """Keep that the group's winners are found, unless that is known."""
        if not self.is_done:
            self._keep("done")

    @property
    def is_done(self) -> bool:
        """Whether an earlier run found the winners, and nothing was evaluated since."""
        return self._state == "done"

    @property
    def _state(self) -> GroupState | None:
        """How far the search is with the group; under ``--fresh`` this session's."""
        place = self.cell, self.accelerator, *self._conditions
        return self.bench.store.group_state(*place, self.bench.since)

    def _keep(self, state: GroupState) -> None:
        self.bench.store.save_group(self.cell, self.accelerator, *self._conditions, state)

    def pass_over(self, candidate: Candidate, evidence: str) -> None:
        """Keep that a candidate of the group needs no evaluation, and why."""
        self.bench.store.save_decision(candidate, *self._conditions, evidence)

    def why_passed_over(self, candidate: Candidate) -> str | None:
        """What was kept of it; under ``--fresh`` in this session only; None when nothing was."""
        return self.bench.store.decision(candidate, *self._conditions, self.bench.since)

    @property
    def _conditions(self) -> tuple[str, Sampling]:
        """Those that decisions hold under: by another clock, of other losses or points, they may be others."""
        sampling = self.bench.sampling(self.cell, "search").on_terms(self.bench.settings.terms)
        return self.bench.environment(self.cell).id, sampling

    @property
    def cases(self) -> list[Candidate]:
        """The group's cases, less those that methods leave out with what they have learnt of the pipe."""
        rows = self._accelerator.grid(self.cell, coarse=self.bench.settings.coarse)
        return [Candidate(self.cell, self.accelerator, params) for params in rows]

    def leaves_out(self, candidate: Candidate) -> bool:
        """Whether methods leave out what was collected as a case, now that they have learnt something of the pipe."""
        return self._registry is not self.bench.registry and candidate not in self.cases

    @property
    def grid(self) -> list[Candidate]:
        """Those of its cases that the model can take and that did not fail."""
        return self._working(self.cases)

    def _open_candidates(self) -> list[Candidate]:
        """Those that the model can take and that did not fail: of the grid and, unless that is coarse, of all space."""
        return self.grid if self.bench.settings.coarse else self.all_points

    @property
    def all_points(self) -> list[Candidate]:
        """Those of the grid and of all space that the model can take and that did not fail."""
        beyond = space(self.plan(), self._is_taken)
        return self._working([*self.cases, *(Candidate(self.cell, self.accelerator, params) for params in beyond)])

    def _working(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        failed = self.bench.failed(self.cell)
        by_key = {candidate.key: candidate for candidate in candidates}
        return [
            candidate
            for key, candidate in by_key.items()
            if key not in failed and not self.bench.pipelines.misfit(candidate)
        ]

    def _is_taken(self, alone: Candidate) -> bool:
        """Whether the model can take a point of one of the group's methods."""
        return not self.bench.pipelines.misfit(alone)

    @property
    def _accelerator(self) -> Accelerator:
        (known,) = self._registry.select([self.accelerator])
        return known

    @property
    def _registry(self) -> Registry:
        """The methods, the group's as they are in its cell."""
        (known,) = self.bench.registry.select([self.accelerator])
        return self.bench.registry.at(self.cell, known.method_names)
