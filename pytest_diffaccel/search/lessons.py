"""What methods learn of a search's cells before they are applied there: found with the environment, else learnt once.

Golden's environments carry it to scripts and to the gate, so what golden holds of an environment is taken first; then
what the store holds. Whoever finds nothing learns it from an unaccelerated generation of the search's first batch.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.base import Method
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.devices import CudaBroken, is_cuda_broken
from pytest_diffaccel.matrix import Cell, Lesson
from pytest_diffaccel.measure.timing_lock import lock_between_processes
from pytest_diffaccel.pipes import described
from pytest_diffaccel.records.golden_file import ENVIRONMENTS_NAME, read_environments
from pytest_diffaccel.search.pipelines import Unavailable
from pytest_diffaccel.settings.work_folder import WORK

if TYPE_CHECKING:
    from pytest_diffaccel.search.workbench import Workbench

_LOG = logging.getLogger(__name__)


class Lessons:
    """What methods have learnt of the cells of a search.

    Args:
        bench: the search's workbench.
        registry: the methods; what they have learnt already is taken as it is.
    """

    def __init__(self, bench: Workbench, registry: Registry) -> None:
        self._bench = bench
        self._registry = registry
        # Of a pipe, by its name; of most none.
        self._learning: dict[str, Sequence[Method]] = {}
        # None: it could not be learnt.
        self._known: dict[tuple[Cell, str], Lesson | None] = {}

    def of(self, cell: Cell, methods: Collection[str]) -> Mapping[str, Lesson]:
        """What those of some methods that must learn have learnt of a cell; without what could not be learnt.

        Args:
            cell: the cell.
            methods: names of methods.

        Raises:
            Unavailable: when the pipe cannot be loaded, or golden and the store hold different lessons.
        """
        if cell.pipe not in self._learning:
            pipe = described(cell.pipe)
            self._learning[cell.pipe] = [method for method in self._registry.methods if method.learns(pipe)]
        asked = [method for method in self._learning[cell.pipe] if method.name in methods]
        lessons = {method.name: self._lesson(cell, method) for method in asked}
        return {name: lesson for name, lesson in lessons.items() if lesson is not None}

    def _lesson(self, cell: Cell, method: Method) -> Lesson | None:
        place = cell, method.name
        if place not in self._known:
            given = self._registry.lessons(cell, [method.name]).get(method.name)
            self._known[place] = given or self._kept(cell, method) or self._learnt(cell, method)
        return self._known[place]

    def _kept(self, cell: Cell, method: Method) -> Lesson | None:
        """What golden or the store holds."""
        environment, golden = self._bench.environment(cell), self._bench.settings.golden
        stored = environment.lessons(cell).get(method.name)
        spelled = read_environments(golden).get(environment.id)
        recorded = spelled.lessons(cell).get(method.name) if spelled else None
        if recorded is None:
            return stored
        if stored is None:
            self._bench.keep_environment(environment.having_learnt(cell, {method.name: recorded}))
        elif stored != recorded:
            raise Unavailable(
                f"{golden.with_name(ENVIRONMENTS_NAME)} holds another lesson of {method.name} in {cell} than "
                f"{self._bench.settings.store}, of one environment ({environment.id}): records of one would be run "
                "with the other; give the --golden file that belongs to this store, or the --store of that file"
            )
        return recorded

    def _learnt(self, cell: Cell, method: Method) -> Lesson | None:
        """What an unaccelerated generation tells; where that fails, candidates say what is lacking."""
        bench, environment = self._bench, self._bench.environment(cell).id
        if method.applies_to(bench.pipelines.of(cell)):
            return None
        # One of the processes learns, the others wait and find it.
        with lock_between_processes(WORK.calibration / f"{environment}-lessons.lock").write_lock():
            kept = bench.reread_environment(cell).lessons(cell).get(method.name)
            if kept is not None:
                return kept
            batch = bench.batches(cell, "search")[0]
            try:
                with bench.generating(cell, {}, "learning") as generate:
                    lesson = generate.learnt(method, batch.prompts, batch.seeds)
            except Exception as error:
                what = method.learns(described(cell.pipe))
                _LOG.warning("%s cannot learn %s in %s: %s", method.name, what, cell, error)
                if is_cuda_broken():
                    raise CudaBroken(f"this process can use its GPU no more ({error})") from error
                return None
            bench.keep_environment(bench.environment(cell).having_learnt(cell, {method.name: lesson}))
            # A session on another machine may have been sooner.
            return bench.environment(cell).lessons(cell)[method.name]
