"""One search as the plugin or a script drives it: candidates and groups in, plain results out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_diffaccel import matrix
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.prompts import read_prompts
from pytest_diffaccel.measure.threads import wait_passively
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.search.budget import Budget

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.composition import Accelerator, Registry
    from pytest_diffaccel.search.workbench import Workbench
    from pytest_diffaccel.settings import Settings


class SearchRun:
    """A search with its settings. Nothing heavy is imported before the first measurement.

    Attributes:
        settings: what to search and how.
        registry: the accelerators known.
        source: where the weights come from.
        workers: processes that search at once, at least 1.
        budget: the search's time.

    Raises:
        ValueError: when the models file or the prompts cannot be used, or a chosen pipe has no model.
        FileNotFoundError: when the prompts file is missing.
    """

    def __init__(self, settings: Settings, registry: Registry, workers: int = 1) -> None:
        wait_passively()
        self.settings = settings
        self.registry = registry
        self.source = ModelSource.from_option(settings.models)
        for pipe in {cell.pipe for cell in settings.cells}:
            self.source.spec(pipe)
        if settings.prompts is not None:
            read_prompts(settings.prompts)
        self.workers = workers
        self.budget = Budget(settings.search_budget_s, len(self.groups) or 1, workers)

    @cached_property
    def bench(self) -> Workbench:
        """The workbench, opened at the first use."""
        from pytest_diffaccel.search.workbench import Workbench

        return Workbench(self.settings, self.registry, self.source, self.workers)

    @property
    def _accelerators(self) -> Sequence[Accelerator]:
        return self.registry.select(self.settings.accelerators)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """All candidates of the settings, group by group."""
        return list(matrix.candidates(self.settings.cells, self._accelerators, coarse=self.settings.coarse))

    @cached_property
    def groups(self) -> list[tuple[Cell, str]]:
        """All (cell, accelerator) pairs in the candidates' order."""
        return matrix.groups(self.settings.cells, self._accelerators)

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        """Measure a candidate, or find it stored; its figures as plain data. Raises what the measurement raises."""
        from pytest_diffaccel.search.cases import search_case
        from pytest_diffaccel.search.outcome import measurement_properties

        measurement, made_now = search_case(self.bench, candidate, within_budget=self.budget.limits)
        return measurement_properties(measurement, stored=not made_now)

    def find_winners(self, cell: Cell, accelerator: str) -> dict[str, Any]:
        """Choose and verify a group's winners; golden entries, environments and pictures as plain data.

        Raises:
            Unfinished: when candidates of the group have not been tried.
            NothingWorked: when all that were tried failed.
        """
        from pytest_diffaccel.search.finals import find_winners
        from pytest_diffaccel.search.group import Group
        from pytest_diffaccel.search.outcome import winner_properties
        from pytest_diffaccel.search.racing import Explored

        if self.settings.exhaustive:
            # Other workers may have measured some of its candidates, or still do.
            self.bench.wait_for_others(cell, accelerator)
        group = Group(self.bench, cell, accelerator)
        explored = Explored(0, 0) if self.settings.exhaustive else group.race(self.budget.next_group())
        winners = find_winners(self.bench, cell, accelerator)
        if explored.left:
            # What was not tried may reach the other targets.
            winners = [winner for winner in winners if winner.choice.reason is None]
        properties = winner_properties(self.bench, cell, accelerator, winners)
        if not explored.left:
            group.finish()
        return properties | {"explored": explored.evaluated, "left": explored.left, "failed": explored.failed}

    def close(self) -> None:
        """Free what the search holds, if it measured anything."""
        if "bench" in vars(self):
            self.bench.close()
