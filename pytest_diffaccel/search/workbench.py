"""What every measurement of a search stands on: the loaded pipeline, its environment, prompts and baseline images."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pytest_diffaccel.accelerators.acceleration import Generate, accelerate
from pytest_diffaccel.accelerators.composition import Registry
from pytest_diffaccel.devices import computing_gpu, number_of_gpus
from pytest_diffaccel.matrix import Candidate, Cell, Params, slug
from pytest_diffaccel.measure import prompts as evaluation_prompts
from pytest_diffaccel.measure.measurement import Measurement, Round, Sampling
from pytest_diffaccel.measure.quality import References
from pytest_diffaccel.measure.threads import cores, use_one_thread, use_share_of_cores
from pytest_diffaccel.measure.timing_lock import TimingLock, lock_between_processes
from pytest_diffaccel.models.loading import load_pipeline, weight_files
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.schedulers import set_scheduler
from pytest_diffaccel.options import WORK_DIR
from pytest_diffaccel.records.environment import Environment, describe_environment
from pytest_diffaccel.records.images import ImageStore, image_set
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.search.knowledge import Knowledge
from pytest_diffaccel.settings import Settings

if TYPE_CHECKING:
    from filelock import ReadWriteLock
    from PIL.Image import Image

    from pytest_diffaccel.search.calibrate.calibration import Calibration

#: ``"search"`` chooses among candidates; ``"winner"`` measures the chosen again, on other prompts and seeds.
Purpose: TypeAlias = Literal["search", "winner"]
# Fewer samples than this say little of a candidate's loss; more are better spent on those that are still in the race.
_FIRST_SAMPLES = 2


@dataclass(frozen=True)
class Batch:
    """Prompts and seeds of one call, as many of each."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


class NoPipeline(RuntimeError):
    """A pipe's weights cannot be used; the message says why and what to do."""


class Workbench:
    """Loads pipelines when they are needed, one at a time, and knows how a search samples.

    Attributes:
        settings: the search's settings.
        registry: the methods known.
        source: where the weights come from.
        store: where measurements are kept.
        images: baseline images, shared by all processes of the search.
        workers: processes that search at once, at least 1.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        source: ModelSource,
        workers: int = 1,
        began_at: float | None = None,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.source = source
        self.store = Store.open(settings.store)
        self.images = ImageStore(WORK_DIR / "images")
        self.workers = workers
        self._loaded: tuple[str, Any] | None = None
        self._refusals: dict[str, str] = {}
        #: How each pipe's calibration went (None: no short run works), once this process has made it or waited for it.
        self.calibrations: dict[str, Calibration | None] = {}
        #: Keys of short runs that failed in this process.
        self.broken_runs: set[str] = set()
        #: Kinds of steps that this process has made: the first of a kind may take longer.
        self.warm_kinds: set[str] = set()
        #: Seconds that this process has spent, by what on.
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        #: When the session began, seconds since the epoch; and since when what is stored counts.
        self.began_at = time.time() if began_at is None else began_at
        self.since = self.began_at if settings.fresh else 0.0
        self._references: dict[tuple[Cell, Purpose], References] = {}
        self._environments: dict[str, Environment] = {}
        self._knowledge: dict[str, Knowledge] = {}
        self._group: tuple[Cell, str] | None = None

    @cached_property
    def lock(self) -> TimingLock:
        """The timing lock of this process's GPU, or of the machine's processors."""
        if self._gpu is None:
            return TimingLock(WORK_DIR / "timing.lock", shareable=self._is_embedded)
        return TimingLock.of_gpu(self._gpu)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time, beside the session's other workers where each has a core of its own, and else alone.

        What such neighbours cost, they cost all kinds of steps alike: beside one of the embedded pipelines, ratios of
        12 candidates shifted by 0.5% in the mean (``python -m benchmarks.contention`` measures it).
        """
        own_cores = self._is_embedded and 1 < self.workers <= cores()
        with self.lock.generating() if own_cores else self.lock.timing():
            yield

    @cached_property
    def _gpu(self) -> str | None:
        """UUID of the GPU that this process computes on; None for the CPU."""
        return None if self.settings.gpus is None else computing_gpu(self.settings.gpu)

    @property
    def first_samples(self) -> int:
        """Samples of a candidate's first evaluation: whole batches."""
        settings = self.settings
        if settings.exhaustive:
            return settings.num_samples
        return min(settings.batch_size * math.ceil(_FIRST_SAMPLES / settings.batch_size), settings.num_samples)

    def knowledge(self, cell: Cell, accelerator: str) -> Knowledge:
        """What is known in the cell's environment; what other processes found is read when a group begins."""
        group = (cell, accelerator)
        if group != self._group:
            self.reread(cell)
        self._group = group
        return self.known(cell)

    def known(self, cell: Cell) -> Knowledge:
        """What is known in the cell's environment, as it was last read, and what this process found since."""
        if cell.pipe not in self._knowledge:
            self.reread(cell)
        return self._knowledge[cell.pipe]

    def reread(self, cell: Cell) -> None:
        """Read anew what is stored of the cell's environment; under ``--fresh`` only what this session found counts."""
        environment = self.environment(cell).id
        samplings = (self.sampling(cell, "search"), self.sampling(cell, "winner"))
        stored = [
            one for sampling in samplings for one in self.store.evaluations(environment, sampling, since=self.since)
        ]
        self._knowledge[cell.pipe] = Knowledge(self.registry, stored, self.store.rounds(environment, self.since))

    def read_rounds(self, cell: Cell) -> None:
        """Know what other processes have added to the cell's environment's calibration."""
        if self.workers > 1:
            self.known(cell).rounds = self.store.rounds(self.environment(cell).id, self.since)

    def keep_round(self, cell: Cell, made: Round) -> None:
        """Store a round of the cell's environment's calibration, and know it."""
        self.store.save_round(self.environment(cell).id, made)
        self.known(cell).add_round(made)

    @contextmanager
    def in_progress(self, cell: Cell, accelerator: str) -> Iterator[None]:
        """Let other processes know that a candidate of a group is being measured."""
        with self._in_progress(cell, accelerator).read_lock():
            yield

    def wait_for_others(self, cell: Cell, accelerator: str) -> None:
        """Wait for the candidates of a group that other processes are measuring; what they found is read anew."""
        with self._in_progress(cell, accelerator).write_lock():
            self._group = None

    @staticmethod
    def _in_progress(cell: Cell, accelerator: str) -> ReadWriteLock:
        return lock_between_processes(WORK_DIR / "in-progress" / f"{cell}-{slug(accelerator)}.lock")

    def keep(self, measurement: Measurement) -> None:
        """Store a measurement, and know it."""
        self.store.save(measurement)
        if measurement.candidate.cell.pipe in self._knowledge:
            self._knowledge[measurement.candidate.cell.pipe].add(measurement)

    @property
    def _is_embedded(self) -> bool:
        return self.settings.models == "embedded"

    def pipeline(self, cell: Cell) -> Any:
        """The cell's pipeline with its scheduler; loading another pipe frees the one before.

        Raises:
            NoPipeline: when its weights are missing, broken or not the pipe's.
            NoSuchGpu: when the GPU that was asked for is not what CUDA computes on.
        """
        if self._loaded is None or self._loaded[0] != cell.pipe:
            self.unload()
            self._loaded = (cell.pipe, self._load(cell.pipe))
        pipeline = self._loaded[1]
        set_scheduler(pipeline, cell.scheduler)
        return pipeline

    def _load(self, pipe: str) -> Any:
        # Once is enough: a hub out of reach is asked again and again for half a minute.
        if pipe in self._refusals:
            raise NoPipeline(self._refusals[pipe])
        device = "cpu" if self._gpu is None else None
        with self.spending("loading"):
            return self._load_now(pipe, device)

    def _load_now(self, pipe: str, device: str | None) -> Any:
        self._share_cores()
        try:
            return load_pipeline(pipe, models=self.source, device=device)
        except (OSError, ValueError) as error:
            self._refusals[pipe] = str(error)
            raise NoPipeline(str(error)) from error

    def _share_cores(self) -> None:
        if self._is_embedded:
            use_one_thread()
        elif self._gpu is not None:
            use_share_of_cores(number_of_gpus(), self.workers)

    def unload(self) -> None:
        """Forget the loaded pipeline: the next use loads it anew, whatever state a failure left it in."""
        self._loaded = None
        self.warm_kinds.clear()

    @contextmanager
    def generating(self, cell: Cell, params: Params) -> Iterator[Generate]:
        """Generate in ``cell`` with ``params`` (``{}``: the baseline) and the model source's own call options."""
        options = self.source.spec(cell.pipe).call_options
        pipeline = self.pipeline(cell)
        with accelerate(pipeline, params, steps=cell.steps, registry=self.registry, **options) as generate:
            yield generate

    def environment(self, cell: Cell) -> Environment:
        """The fingerprint of measurements in ``cell``; kept in the store when it is first asked for."""
        if cell.pipe not in self._environments:
            environment = self._describe(cell)
            # What an earlier run learnt about it stays.
            self.keep_environment(self.store.environments().get(environment.id, environment))
        return self._environments[cell.pipe]

    def keep_environment(self, environment: Environment) -> None:
        """Keep what was learnt about an environment, in place of what was known of it."""
        self.store.save_environment(environment)
        self._environments[environment.pipe] = environment

    def _describe(self, cell: Cell) -> Environment:
        spec = self.source.spec(cell.pipe)
        pipeline = self.pipeline(cell)
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        return describe_environment(
            pipe=cell.pipe,
            model_source=spec.description,
            weights=weight_files(spec),
            device=pipeline.device,
            dtype=pipeline.unet.dtype,
            image_size=spec.image_size or (side, side),
            batch_size=self.settings.batch_size,
            guidance_scale=_default_guidance_scale(pipeline) if spec.guidance_scale is None else spec.guidance_scale,
        )

    def sampling(self, cell: Cell, purpose: Purpose, num_samples: int | None = None) -> Sampling:
        """Which images are made for ``purpose`` in ``cell``: as many as the settings say, or fewer."""
        return Sampling(
            num_samples=num_samples or self.settings.num_samples,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            prompts_digest=evaluation_prompts.digest(self._prompts(cell)),
            purpose=purpose,
        )

    def _prompts(self, cell: Cell) -> Sequence[str]:
        if self.settings.prompts is not None:
            return evaluation_prompts.read_prompts(self.settings.prompts)
        return evaluation_prompts.default_prompts(self.source.spec(cell.pipe))

    def batches(self, cell: Cell, purpose: Purpose, num_samples: int | None = None) -> list[Batch]:
        """All samples of ``purpose``, or the first of them, batch by batch; only the last may be smaller."""
        settings = self.settings
        count = num_samples or settings.num_samples
        samples = evaluation_prompts.select(self._prompts(cell), count, settings.seed, purpose)
        parts = [samples[start : start + settings.batch_size] for start in range(0, len(samples), settings.batch_size)]
        return [Batch(tuple(prompt for prompt, _ in part), tuple(seed for _, seed in part)) for part in parts]

    def begin_baseline_images(self, cell: Cell, purpose: Purpose) -> None:
        """Make the baseline's images unless they are there, or another worker is at it: nothing needs them yet."""
        self.images.make_unless_busy(*self._baseline_set(cell, purpose))

    def baseline_images(self, cell: Cell, purpose: Purpose) -> list[Image]:
        """The unaccelerated pipeline's images, made once a cell and environment for all cases and workers."""
        return self.images.find_or_make(*self._baseline_set(cell, purpose))

    def keep_baseline_images(self, cell: Cell, purpose: Purpose, images: Sequence[Image]) -> None:
        """Keep the baseline's images that timed runs made, unless they are there."""
        self.images.make_unless_busy(self._baseline_set(cell, purpose)[0], lambda: images)

    def references(self, cell: Cell, purpose: Purpose) -> References:
        """The baseline's images to compare candidates with: read once, and kept until another cell's are needed."""
        key = (cell, purpose)
        if key not in self._references:
            images = self.baseline_images(cell, purpose)
            self._references = {known: one for known, one in self._references.items() if known[0] == cell}
            self._references[key] = References(images, str(self.pipeline(cell).device))
        return self._references[key]

    def _baseline_set(self, cell: Cell, purpose: Purpose) -> tuple[str, Callable[[], list[Image]]]:
        """Name of the set of the baseline's images, and what makes them."""

        def make() -> list[Image]:
            with self.lock.generating(), self.spending("pictures"), self.generating(cell, {}) as generate:
                images = [
                    image for batch in self.batches(cell, purpose) for image in generate(batch.prompts, batch.seeds)
                ]
            self.warm_kinds |= set(generate.kinds)
            return images

        return self._image_set(cell, str(cell), purpose), make

    def baseline_pictures(self, cell: Cell, purpose: Purpose) -> Path:
        """Folder of the baseline's images."""
        return self.images.path(self._image_set(cell, str(cell), purpose))

    def save_winner_images(self, candidate: Candidate, images: Sequence[Image]) -> None:
        """Keep a winner's images for the picture grid and the report."""
        self.images.save(self._image_set(candidate.cell, candidate.key, "winner"), images)

    def winner_pictures(self, candidate: Candidate) -> Path:
        """Folder of a winner's images."""
        return self.images.path(self._image_set(candidate.cell, candidate.key, "winner"))

    def _image_set(self, cell: Cell, subject: str, purpose: Purpose) -> str:
        return image_set(self.environment(cell).id, subject, self.sampling(cell, purpose))

    @contextmanager
    def spending(self, on: str) -> Iterator[None]:
        """Note the block's time as spent on something; within such a block, only what is named innermost counts."""
        began, before = time.monotonic(), sum(self.spent_s.values())
        try:
            yield
        finally:
            self.spent_s[on] += time.monotonic() - began - (sum(self.spent_s.values()) - before)

    def warm_up(self, cell: Cell, baseline: Generate) -> None:
        """Run the baseline once in this process, so that no timed run is its first."""
        if not set(baseline.kinds) <= self.warm_kinds:
            batch = self.batches(cell, "search")[0]
            baseline(batch.prompts, batch.seeds)
            self.warm_kinds |= set(baseline.kinds)

    def close(self) -> None:
        """Free the pipeline and close the store."""
        self.unload()
        self.store.close()


def _default_guidance_scale(pipeline: Any) -> float:
    import inspect

    return float(inspect.signature(type(pipeline).__call__).parameters["guidance_scale"].default)
