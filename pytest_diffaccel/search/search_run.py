"""One search as the plugin or a script drives it: candidates and groups in, results out (:mod:`.results`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import uuid4

from pytest_diffaccel import matrix
from pytest_diffaccel.matrix import Candidate, Cell, Group
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.measure.prompt_files import read_prompt_file
from pytest_diffaccel.measure.threads import wait_passively
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.weights import check_presence
from pytest_diffaccel.pipes import described
from pytest_diffaccel.search.budget import SearchBudget
from pytest_diffaccel.search.news import News

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.composition import Accelerator
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.records.contents import Holder
    from pytest_diffaccel.search.decide.racing import Explored
    from pytest_diffaccel.search.decide.select import Choice
    from pytest_diffaccel.search.results import CellWinners, Measured, Winners
    from pytest_diffaccel.search.verify.verification import Winner
    from pytest_diffaccel.search.workbench import Workbench
    from pytest_diffaccel.settings.search_settings import Settings


@dataclass(frozen=True)
class SearchSession:
    """What the processes of one session have in common.

    Attributes:
        workers: processes that search at once, at least 1.
        name: no other session has it.
        began_at: seconds since the epoch.
        workers_here: those of them on this process's machine; None for all.
    """

    workers: int = 1
    name: str = field(default_factory=lambda: uuid4().hex)
    began_at: float = field(default_factory=time.time)
    workers_here: int | None = None


class SearchRun:
    """A search with its settings. Nothing heavy is imported before the first measurement.

    Attributes:
        settings: what to search and how.
        registry: the accelerators known.
        source: where the weights come from.
        session: what its processes have in common.
        budget: the search's time.
        metrics: the metrics of pictures known.
        on_wait: told for which other session this process waits; None to keep it in the store.
        on_phase: told what this process begins to spend time on; None where nobody asks.

    Raises:
        ValueError: when the models file or the prompts cannot be used, or a chosen pipe has no model, or a kind of
            denoiser that no chosen accelerator is for.
        FileNotFoundError: when the prompts file is missing, or a file of a chosen pipe's folder; offline, also one of
            its repository in the local cache.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        session: SearchSession | None = None,
        metrics: MetricRegistry | None = None,
    ) -> None:
        wait_passively()
        self.settings = settings
        self.registry = registry
        self.source = ModelSource.from_option(settings.models)
        for pipe in {cell.pipe for cell in settings.cells}:
            self._check_suited(pipe)
            check_presence(self.source.spec(pipe))
        if settings.prompts is not None:
            read_prompt_file(settings.prompts)
        self.session = session or SearchSession()
        self.metrics = metrics or MetricRegistry()
        self.on_wait: Callable[[Holder], None] | None = None
        self.on_phase: Callable[[str], None] | None = None
        self._told: set[str] = set()
        self._told_s: dict[str, float] = {}
        self._told_away_s = 0.0
        self.budget = SearchBudget(settings.search_budget_s, len(self.groups) or 1, self.session.workers)

    def _check_suited(self, pipe: str) -> None:
        chosen = self.settings.accelerators
        if not any(accelerator.suits(pipe) for accelerator in self._accelerators):
            instead = "; ".join(accelerator.name for accelerator in self.registry.suiting(pipe)) or "none that is known"
            raise ValueError(
                f"{pipe}: none of the chosen accelerators ({'; '.join(chosen)}) is for a pipe whose denoiser is a "
                f"{described(pipe).denoiser}; those that are: {instead}"
            )

    @cached_property
    def bench(self) -> Workbench:
        """The workbench, opened at the first use."""
        from pytest_diffaccel.search.workbench import Workbench

        session = self.session
        place = session.workers, session.name, session.began_at
        bench = Workbench(self.settings, self.registry, self.source, *place, self.metrics, session.workers_here)
        bench.shared.on_wait = self.on_wait or bench.shared.on_wait
        bench.spent.on_begin = self.on_phase or bench.spent.on_begin
        return bench

    @property
    def _accelerators(self) -> Sequence[Accelerator]:
        return self.registry.select(self.settings.accelerators)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """All candidates of the settings, group by group, each once: a grid that is cut off at the steps may repeat."""
        found = matrix.candidates(self.settings.cells, self._accelerators, coarse=self.settings.coarse)
        return list(dict.fromkeys(found))

    @cached_property
    def groups(self) -> list[Group]:
        """All groups, in the candidates' order."""
        return matrix.groups(self.settings.cells, self._accelerators)

    def measure(self, candidate: Candidate, *, others_follow: bool = False) -> Measured:
        """Measure a candidate, or find it stored. Raises what the measurement raises.

        Args:
            candidate: what to measure.
            others_follow: whether this session looks for its group's winners, too: then what promises much more goes
                first.
        """
        from pytest_diffaccel.search.cases import search_case
        from pytest_diffaccel.search.outcome import deciding_figures, figures_of
        from pytest_diffaccel.search.results import Measured

        measurement, made_now = search_case(
            self.bench, candidate, within_budget=self.budget.limits, others_follow=others_follow
        )
        figures = figures_of(measurement, deciding_figures(self.bench, measurement))
        return Measured(figures, stored=not made_now, news=self._news())

    def take(self, group: Group, others: Collection[str] | None = None) -> bool:
        """Take a group for this session: no other one with its store measures in it before it is given up.

        Args:
            group: the group.
            others: for its winners' case, accelerators of the cell's other groups whose winners this session looks
                for; None for a candidate's. After the last of the cell's groups, all are taken.

        Returns:
            Whether the session has it now, and all that is needed; else another session is in it.
        """
        return self.bench.shared.take(group.cell, self._needed(group, others))

    def wait_for(self, group: Group, others: Collection[str] | None = None) -> None:
        """Wait a moment for whoever is in what :meth:`take` could not take, and say for whom."""
        self.bench.shared.wait(group.cell, self._needed(group, others))

    def give_up(self, group: Group, others: Collection[str] | None = None) -> None:
        """Give up what :meth:`take` took."""
        from pytest_diffaccel.records.leases import IN_COMMON

        self.bench.shared.release(group.cell, [group.accelerator, *(others or ()), IN_COMMON])

    def _needed(self, group: Group, others: Collection[str] | None) -> list[str]:
        """Accelerators of the cell's groups that a case is in."""
        from pytest_diffaccel.records.leases import IN_COMMON

        if others is None:
            return [group.accelerator]
        ended = self.bench.store.ended_groups(group.cell, *self.bench.conditions(group.cell), self.session.name)
        return [group.accelerator, *others, IN_COMMON] if ended.keys() >= set(others) else [group.accelerator]

    def find_winners(self, cell: Cell, accelerator: str, wanted: Collection[Group] = ()) -> Winners:
        """Choose a group's winners; after the last of the cell's groups, verify those of all of them.

        Args:
            cell: the cell.
            accelerator: the group's.
            wanted: all groups whose winners this session looks for, in any process; this one in any case.

        Returns:
            The group's winners as they stand, or why it has none; after the last group, those of all.
        """
        others = sorted(name for other, name in wanted if other == cell and name != accelerator)
        try:
            return self._found(cell, accelerator, others, wanted)
        finally:
            if "bench" in vars(self):
                self.give_up(Group(cell, accelerator), others)

    def _found(self, cell: Cell, accelerator: str, others: Collection[str], wanted: Collection[Group]) -> Winners:
        from pytest_diffaccel.search.decide.racing import Explored
        from pytest_diffaccel.search.outcome import keep_winners, standing
        from pytest_diffaccel.search.results import Refusal, Winners
        from pytest_diffaccel.search.verify.cell_end import end_group, is_verified_ahead
        from pytest_diffaccel.search.verify.choices import NothingFits, NothingWorked, Unfinished
        from pytest_diffaccel.search.verify.verification import verify_ahead

        explored, refused = Explored(0, 0), None
        chosen: list[Choice] = []
        try:
            explored, chosen = self._decide(cell, accelerator)
            if is_verified_ahead(self.bench, Group(cell, accelerator), self.session.name, wanted):
                ahead = verify_ahead(self.bench, cell, accelerator)
                keep_winners(self.bench, cell, _decided(ahead.winners, {accelerator: explored.left}))
                explored = replace(explored, failed=(*explored.failed, *ahead.failed))
        except NothingFits as error:
            refused = Refusal("unfit", str(error))
        except NothingWorked as error:
            refused = Refusal("failed", str(error))
        except Unfinished as error:
            refused = Refusal("unfinished", str(error))
        finally:
            # Also after what goes wrong here: the others are verified by whoever is last.
            left = end_group(self.bench, cell, accelerator, explored.left, self.session.name, [accelerator, *others])
        of_cell, failed = (None, ()) if left is None else self._verify(cell, left)
        return Winners(
            cell=cell,
            accelerator=accelerator,
            provisional=standing(self.bench, cell, accelerator, chosen) if chosen else (),
            explored=explored.evaluated,
            left=explored.left,
            failed=(*explored.failed, *failed),
            refused=refused,
            of_cell=of_cell,
            news=self._news(),
        )

    def _decide(self, cell: Cell, accelerator: str) -> tuple[Explored, list[Choice]]:
        """Evaluate what else may win a group, and choose."""
        from pytest_diffaccel.search.decide.racing import Explored
        from pytest_diffaccel.search.group import GroupSearch
        from pytest_diffaccel.search.verify.choices import choices

        if self.session.workers > 1 or self.settings.exhaustive:
            # Others may have measured some of its candidates, or still do.
            self.bench.wait_for_others(cell, accelerator)
        self.bench.knowledge(cell, accelerator)
        if self.settings.exhaustive:
            return Explored(0, 0), choices(self.bench, cell, accelerator)
        explored = GroupSearch(self.bench, cell, accelerator).race(self.budget.next_group())
        return explored, choices(self.bench, cell, accelerator)

    def _verify(self, cell: Cell, left: Mapping[str, int]) -> tuple[CellWinners | None, tuple[str, ...]]:
        """Verify the winners of the cell's groups that have any.

        Args:
            cell: the cell.
            left: by accelerator, how many promising candidates there was no time for.

        Returns:
            The winners, None where no group has anything to choose from; and what failed in being verified.
        """
        from pytest_diffaccel.records.leases import IN_COMMON
        from pytest_diffaccel.search.group import GroupSearch
        from pytest_diffaccel.search.outcome import cell_winners, keep_winners
        from pytest_diffaccel.search.verify.choices import verifiable
        from pytest_diffaccel.search.verify.verification import verify

        # Another session may have verified them, or be at it.
        with self.bench.shared.together(cell, [*left, IN_COMMON]):
            self.bench.reread(cell)
            groups = verifiable(self.bench, cell, list(left))
            if not groups:
                return None, ()
            made = verify(self.bench, cell, groups, self.budget.is_spent)
            known = _decided(made.winners, left)
            keep_winners(self.bench, cell, known)
            for name in made.winners:
                if not left[name] and name not in made.unfinished:
                    GroupSearch(self.bench, cell, name).finish()
            return cell_winners(self.bench, cell, known, made.unfinished), made.failed

    def _news(self) -> News:
        """What this process spent its time on since its last result, calibrations that are news, and waits."""
        if "bench" not in vars(self):
            return News()
        spent = {
            name: round(seconds - self._told_s.get(name, 0.0), 3)
            for name, seconds in self.bench.spent.seconds.items()
            if seconds > self._told_s.get(name, 0.0)
        }
        self._told_s = dict(self.bench.spent.seconds)
        known = {pipe: calibration for pipe, calibration in self.bench.calibrations.items() if calibration is not None}
        news = {pipe: calibration for pipe, calibration in known.items() if pipe not in self._told}
        self._told |= news.keys()
        away_s = round(self.bench.store.away_s - self._told_away_s, 3)
        self._told_away_s = self.bench.store.away_s
        return News(spent, news, away_s)

    def close(self) -> None:
        """Free what the search holds, if it measured anything."""
        if "bench" in vars(self):
            self.bench.close()


def _decided(winners: Mapping[str, Sequence[Winner]], left: Mapping[str, int]) -> dict[str, list[Winner]]:
    """The winners of groups of which ``left`` candidates were not tried: these may reach the targets without one."""
    return {
        name: [winner for winner in own if winner.choice.reason is None or not left[name]]
        for name, own in winners.items()
    }
