"""The pipelines that a search generates with: loaded when needed, one at a time, in turn with other workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

from pytest_diffaccel.accelerators.acceleration import Generate, accelerate
from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.calls import check_call, own_size
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.accelerators.stack import EAGER, Prepared, SetUp, prepared
from pytest_diffaccel.devices import computing_gpu, number_of_gpus
from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.measure.metrics.lpips import check_size
from pytest_diffaccel.measure.threads import cores, solve_on_one_thread, use_one_thread, use_share_of_cores
from pytest_diffaccel.measure.timing_lock import TimingLock
from pytest_diffaccel.models.loading import load_pipeline
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.schedulers import set_scheduler
from pytest_diffaccel.search.spent import Spent
from pytest_diffaccel.settings.search_settings import Settings
from pytest_diffaccel.settings.work_folder import WORK


class Unavailable(RuntimeError):
    """Something that measuring needs is missing, or locked for too long: weights, a file. No candidate's fault."""


class NoPipeline(Unavailable):
    """A pipe's weights cannot be used, or draw nothing; the message says why and what to do."""


class Pipelines:
    """Loads pipelines and generates with them.

    Args:
        settings: the search's settings.
        registry: the methods known.
        source: where the weights come from.
        workers: processes that search at once on this machine, at least 1.
        spent: where loading is noted.
        on_set_up: told what torch compiled in this process, when that was more than before: of which cell's pipe and
            which accelerator, and all of it so far.

    Attributes:
        warm_kinds: kinds of steps that this process has made: the first of a kind may take longer.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        source: ModelSource,
        workers: int,
        spent: Spent,
        on_set_up: Callable[[Cell, str, SetUp], None],
    ) -> None:
        self.warm_kinds: set[str] = set()
        self._on_set_up = on_set_up
        self._set_up: dict[tuple[str, str], SetUp] = {}
        self._stack = ExitStack()
        self._settings = settings
        self._registry = registry
        self._source = source
        self._workers = workers
        self._spent = spent
        self._loaded: tuple[str, Any, Prepared] | None = None
        self._refusals: dict[str, str] = {}
        self._misfits: dict[str, str] = {}

    @cached_property
    def lock(self) -> TimingLock:
        """The timing lock of this process's GPU, or of the machine's processors."""
        if self._gpu is None:
            return TimingLock(WORK.timing_lock, shareable=self._is_embedded)
        return TimingLock.of_gpu(self._gpu)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time, beside the session's other workers where each has a core of its own, and else alone.

        What such neighbours cost, they cost all kinds of steps alike: beside one of the embedded pipelines, ratios of
        12 candidates shifted by 0.5% in the mean (``python -m benchmarks.contention`` measures it).
        """
        own_cores = self._gpu is None and self._is_embedded and 1 < self._workers <= cores()
        with self.lock.generating() if own_cores else self.lock.timing():
            yield

    @cached_property
    def _gpu(self) -> str | None:
        """UUID of the GPU that this process computes on; None for the CPU."""
        return None if self._settings.gpus is None else computing_gpu(self._settings.gpu)

    @property
    def _is_embedded(self) -> bool:
        return self._settings.models == "embedded"

    def of(self, cell: Cell) -> Any:
        """The cell's pipeline with its scheduler; loading another pipe frees the one before.

        Raises:
            NoPipeline: when its weights are missing, broken or not the pipe's, or its pictures too small to compare.
            NoSuchGpu: when the GPU that was asked for is not what CUDA computes on.
        """
        pipeline, _ = self._of_pipe(cell.pipe)
        set_scheduler(pipeline, cell.scheduler)
        return pipeline

    def prepared(self, cell: Cell) -> Prepared:
        """The cell's pipeline on its stack.

        Raises:
            NoPipeline: as :meth:`of`.
        """
        return self._of_pipe(cell.pipe)[1]

    def _of_pipe(self, pipe: str) -> tuple[Any, Prepared]:
        if self._loaded is None or self._loaded[0] != pipe:
            self.unload()
            self._loaded = (pipe, *self._load(pipe))
        return self._loaded[1:]

    def misfit(self, candidate: Candidate) -> str:
        """Why the loaded model cannot take a candidate's parameters; empty where it can.

        Grids are made before any model is loaded, of the pipe as it was published: another may have fewer blocks, make
        pictures of another size, or use no guidance.

        Raises:
            NoPipeline: as :meth:`of`.
        """
        if candidate.key not in self._misfits:
            self._misfits[candidate.key] = self._misfit_of(candidate)
        return self._misfits[candidate.key]

    def _misfit_of(self, candidate: Candidate) -> str:
        cell, params = candidate.cell, candidate.params
        accelerator = self._registry.at(cell, params).for_params(params)
        options = self._source.spec(cell.pipe).call_options
        try:
            check_call(self._of_pipe(cell.pipe)[0], accelerator, params, steps=cell.steps, **options)
        except InvalidParams as error:
            return str(error)
        return ""

    def _load(self, pipe: str) -> tuple[Any, Prepared]:
        # Once is enough: a hub out of reach is asked again and again for half a minute.
        if pipe in self._refusals:
            raise NoPipeline(self._refusals[pipe])
        device = "cpu" if self._gpu is None else None
        with self._spent.on("loading"):
            return self._load_now(pipe, device)

    def _load_now(self, pipe: str, device: str | None) -> tuple[Any, Prepared]:
        self._share_cores()
        try:
            pipeline = load_pipeline(pipe, models=self._source, device=device)
            height, width = self._source.spec(pipe).image_size or own_size(pipeline)
            check_size(width, height)
            return pipeline, self._stack.enter_context(prepared(pipeline, self._settings.stack))
        except (OSError, ValueError) as error:
            self._refusals[pipe] = str(error)
            raise NoPipeline(str(error)) from error

    def _share_cores(self) -> None:
        solve_on_one_thread()
        if self._is_embedded:
            use_one_thread()
        elif self._gpu is not None:
            use_share_of_cores(number_of_gpus(), self._workers)

    def unload(self) -> None:
        """Forget the loaded pipeline: the next use loads it anew, whatever state a failure left it in."""
        self._loaded = None
        self._stack.close()
        self.warm_kinds.clear()

    @contextmanager
    def generating(self, cell: Cell, params: Params) -> Iterator[Generate]:
        """Generate in ``cell`` with ``params`` (``{}``: the baseline) and the model source's own call options."""
        options = self._source.spec(cell.pipe).call_options
        registry = self._registry.at(cell, params)
        pipeline = self.of(cell)
        with accelerate(pipeline, params, steps=cell.steps, registry=registry, **options) as generate:
            place = cell.pipe, generate.accelerator.name
            if self._settings.stack != EAGER and place not in self._set_up:
                self._set_up[place] = SetUp()
                self._spent.on_begin("compiling")
            generate.on_set_up = self._spend_on_compiling
            try:
                yield generate
            finally:
                if generate.set_up != SetUp():
                    self._set_up[place] = self._set_up.get(place, SetUp()) + generate.set_up
                    self._on_set_up(cell, place[1], self._set_up[place])

    def _spend_on_compiling(self, compiled: SetUp) -> None:
        """Within whatever a generation's time is spent on, which then counts less."""
        self._spent.seconds["compiling"] += compiled.seconds
