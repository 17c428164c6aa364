"""What every measurement of a search stands on: pipelines, pictures, samples, the store and what is known from it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.accelerators.base import Foresight
from pytest_diffaccel.accelerators.calls import guidance_scale_of, own_size
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import Registry
from pytest_diffaccel.accelerators.stack import SetUp
from pytest_diffaccel.matrix import Candidate, Cell, Group, Params
from pytest_diffaccel.measure import prompts as evaluation_prompts
from pytest_diffaccel.measure.measurement import Measurement, Round, Sampling, SpeedClock
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.measure.prompt_files import read_prompt_file
from pytest_diffaccel.measure.prompts import Purpose
from pytest_diffaccel.measure.timing_lock import lock_between_processes
from pytest_diffaccel.models.component_settings import settings_digests
from pytest_diffaccel.models.loading import weight_files
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.schedulers import open_settings, original_settings
from pytest_diffaccel.pipes import denoiser_of
from pytest_diffaccel.records.contents import Failure
from pytest_diffaccel.records.database import PATIENCE_S
from pytest_diffaccel.records.environment import Environment, describe_environment
from pytest_diffaccel.records.store import Store
from pytest_diffaccel.search.kept_pictures import KeptPictures
from pytest_diffaccel.search.knowledge import Knowledge
from pytest_diffaccel.search.lessons import Lessons
from pytest_diffaccel.search.pipelines import Pipelines
from pytest_diffaccel.search.predict.loss_model import NO_LOSS
from pytest_diffaccel.search.secondary import SecondaryMetrics
from pytest_diffaccel.search.sharing import SharedGroups
from pytest_diffaccel.search.spent import Spent
from pytest_diffaccel.settings.search_settings import Settings
from pytest_diffaccel.settings.work_folder import WORK

if TYPE_CHECKING:
    from filelock import ReadWriteLock

    from pytest_diffaccel.search.news import Calibration

# Fewer samples than this say little of a candidate's loss; more are better spent on those that are still in the race.
_FIRST_SAMPLES = 2
# Calls draw as few where what a call takes beside its pictures is worth less than so many of them. A search whose first
# evaluations have 2 pictures, not 8, takes 4.0% of an exhaustive one's time, not 6.3%, in twice as many calls
# (benchmarks/search_cost.py --first 8).
_FIXED_PICTURES = 1.0
# Of which it is foreseen what they decide: how far prompts differ shows in some, and each takes a generation.
_FORESEEN_BATCHES = 4
# By how many seconds hosts' clocks may differ: when something was stored its host says.
_CLOCKS_APART_S = 60.0


@dataclass(frozen=True)
class Batch:
    """Prompts and seeds of one call, as many of each."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


class Workbench:
    """What a search measures with: pipelines, pictures, the store, and what is known from it; and how it samples.

    Attributes:
        settings: the search's settings.
        registry: the methods known, which learn what they must of each cell that they are used in
            (:meth:`.Registry.at`).
        source: where the weights come from.
        store: where measurements are kept.
        workers: processes that search at once, at least 1.
        session: what all processes of the session call it, and no other session.
        shared: which groups the session is in.
        spent: what this process spends its time on.
        pipelines: what generates.
        pictures: the unaccelerated pipeline's, and the winners'.
        secondary: the metrics that were asked for beside LPIPS.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        source: ModelSource,
        workers: int,
        session: str,
        began_at: float,
        metrics: MetricRegistry | None = None,
        workers_here: int | None = None,
    ) -> None:
        self.settings = settings
        # First: where one cannot be computed, nothing is measured.
        self.secondary = SecondaryMetrics(self, metrics or MetricRegistry())
        self.registry = registry.learning(Lessons(self, registry).of)
        self.source = source
        self.store = Store.open(settings.store, PATIENCE_S)
        self.workers = workers
        self.session = session
        self.shared = SharedGroups(self.store, session, settings.heartbeat_s, self.conditions)
        self.spent = Spent()
        here = workers_here or workers
        self.pipelines = Pipelines(settings, self.registry, source, here, self.spent, self._keep_set_up)
        self.pictures = KeptPictures(self)
        #: How each pipe's calibration went (None: no short run works), once this process has taken part in it.
        self.calibrations: dict[str, Calibration | None] = {}
        #: Keys of short runs that failed in this process, by clock: one that a profiler loses sight of works otherwise.
        self.broken_runs: dict[SpeedClock, set[str]] = {"wall": set(), "device": set()}
        #: When the session began, seconds since the epoch; and since when what is stored counts.
        self.began_at = began_at
        self.since = self.began_at if settings.fresh else 0.0
        self._environments: dict[str, Environment] = {}
        self._knowledge: dict[str, Knowledge] = {}
        self._foresights: dict[Group, Sequence[Foresight]] = {}
        self._group: Group | None = None
        self._read_at = 0.0
        #: Keys of the candidates that this process has begun to measure.
        self.attempted: set[str] = set()

    def first_samples(self, cell: Cell, accelerator: str) -> int:
        """Samples of a candidate's first evaluation: whole batches, or a few where small calls are worth it."""
        settings = self.settings
        if settings.exhaustive:
            return settings.num_samples
        size = 1 if self._draws_few(cell, accelerator) else settings.batch_size
        return min(size * math.ceil(_FIRST_SAMPLES / size), settings.num_samples)

    def _draws_few(self, cell: Cell, accelerator: str) -> bool:
        """Whether calls of a few pictures take that much less than whole batches, and draw the same.

        Not where the pictures of a batch decide together, nor on a stack that is compiled for a batch's size.
        """
        scale, size = self.environment(cell).scale, self.settings.batch_size
        (known,) = self.registry.select([accelerator])
        if scale is None or known.deciding or self.environment(cell).stack or scale.batch > NO_LOSS:
            return False
        # A batch of n takes a fixed part and n pictures: the fixed part is what n calls of one take more, by n - 1.
        fixed, picture = size * scale.alone_share - 1, 1 - scale.alone_share
        return size > 1 and fixed < _FIXED_PICTURES * picture

    def knowledge(self, cell: Cell, accelerator: str) -> Knowledge:
        """What is known in the cell's environment; what others found is read when a group begins, in it of helpers."""
        group = Group(cell, accelerator)
        if group != self._group:
            self.reread(cell)
        elif self.workers > 1 and not self.settings.exhaustive:
            self._read_more(cell)
        self._group = group
        return self.known(cell)

    def known(self, cell: Cell) -> Knowledge:
        """What is known in the cell's environment, as it was last read, and what this process found since."""
        if cell.pipe not in self._knowledge:
            self.reread(cell)
        return self._knowledge[cell.pipe]

    def reread(self, cell: Cell) -> None:
        """Read anew what is stored of the cell's environment; under ``--fresh`` only what this session found counts.

        What was evaluated once and fails now is left out.
        """
        if self.environment(cell).scale is None:
            self.reread_environment(cell)  # it tells how many pictures a first evaluation has
        environment = self.environment(cell).id
        self._read_at = time.time()
        stored = [*self._stored(cell, "search", self.since), *self._stored(cell, "winner", self.since)]
        rounds = self.store.rounds(environment, self.since)
        self._knowledge[cell.pipe] = Knowledge(
            self.registry, stored, rounds, self.settings.decide_by, self.settings.quality, self._foresights
        )

    def _read_more(self, cell: Cell) -> None:
        """Take in what others have evaluated in the cell since it was read last."""
        since, self._read_at = max(self.since, self._read_at - _CLOCKS_APART_S), time.time()
        known = self.known(cell)
        for measurement in self._stored(cell, "search", since, cell):
            if measurement != known.find(measurement.candidate):
                known.add(measurement)

    def _stored(self, cell: Cell, purpose: Purpose, since: float, of: Cell | None = None) -> list[Measurement]:
        """What is stored of the cell's environment and of what works, since some time; of one cell or of all."""
        environment, failed = self.environment(cell).id, self.failed(cell)
        found = self.store.evaluations(environment, self.sampling(cell, purpose), of, since, self.is_usable)
        return [measurement for measurement in found if measurement.candidate.key not in failed]

    def foresee(self, cell: Cell, accelerator: Accelerator) -> None:
        """Foresee what a method that decides by the picture decides in a cell, by its first batches, once."""
        group = Group(cell, accelerator.name)
        if group in self._foresights:
            return
        batches = self.batches(cell, "search")[:_FORESEEN_BATCHES]
        with self.generating(cell, accelerator.extremes[0], "foreseeing") as generate:
            self._foresights[group] = [generate.foreseen(batch.prompts, batch.seeds) for batch in batches]
        self.known(cell).forget_costs()

    def is_usable(self, measurement: Measurement) -> bool:
        """Whether a stored measurement says what the search decides by; winners get what they lack of their pictures.

        A search by another metric has kept no pictures of what it measured.
        """
        return measurement.sampling.purpose != "search" or not self.secondary.lacks_deciding(measurement)

    def read_rounds(self, cell: Cell) -> None:
        """Know what other processes have added to the cell's environment's calibration."""
        if self.has_company():
            self.known(cell).replace_rounds(self.store.rounds(self.environment(cell).id, self.since))

    def has_company(self) -> bool:
        """Whether other processes search into the store now: of this session, or of others."""
        return self.workers > 1 or len(self.store.sessions()) > 1

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
        return lock_between_processes(WORK.in_progress / f"{Group(cell, accelerator).name}.lock")

    def keep(self, measurement: Measurement) -> None:
        """Store a measurement, and know it."""
        self.store.save(measurement)
        if measurement.candidate.cell.pipe in self._knowledge:
            self._knowledge[measurement.candidate.cell.pipe].add(measurement)

    def failures(self, cell: Cell, sampling: Sampling) -> list[Failure]:
        """What this session tries no more in the cell's environment; under ``--fresh`` only what failed in it."""
        found = self.store.failures(self.environment(cell).id, sampling, self.since, self.session)
        return [failure for failure in found if failure.stands_in(self.session, self.began_at)]

    def failure_elsewhere(self, candidate: Candidate) -> Failure | None:
        """How a candidate failed in another session since this one began; None where it did not, or may work here."""
        if candidate.key in self.attempted:
            return None
        environment, sampling = self.conditions(candidate.cell)
        found = self.store.failures(environment, sampling, self.began_at, self.session)
        kept = [failure for failure in found if failure.kind not in ("interrupted", "missing")]
        return next((failure for failure in kept if failure.candidate == candidate), None)

    def failed(self, cell: Cell) -> set[str]:
        """Keys of the candidates of the cell's environment that this session evaluates no more."""
        return {failure.candidate.key for failure in self.failures(cell, self.sampling(cell, "search"))}

    def environment(self, cell: Cell) -> Environment:
        """The fingerprint of measurements in ``cell``; kept in the store when it is first asked for."""
        if cell.pipe not in self._environments:
            environment = self._describe(cell)
            self.keep_environment(environment)
        return self._environments[cell.pipe]

    def reread_environment(self, cell: Cell) -> Environment:
        """The same, with what other processes have found out about it."""
        environment = self.environment(cell)
        known = environment.knowing_also(self.store.environments().get(environment.id, environment))
        self._environments[cell.pipe] = known
        return known

    def conditions(self, cell: Cell) -> tuple[str, Sampling]:
        """Under which all sessions measure the same in a cell: its environment's id, and the search's sampling."""
        return self.environment(cell).id, self.sampling(cell, "search")

    def keep_environment(self, environment: Environment) -> None:
        """Keep what was found out about an environment, beside what is known of it."""
        with lock_between_processes(WORK.calibration / f"{environment.id}-kept.lock").write_lock():
            stored = self.store.environments().get(environment.id)
            known = stored.knowing_also(environment) if stored else environment
            self.store.save_environment(known)
        self._environments[environment.pipe] = known

    def _keep_set_up(self, cell: Cell, accelerator: str, set_up: SetUp) -> None:
        """Keep what torch compiled of an accelerator."""
        self.keep_environment(self.environment(cell).having_set_up(accelerator, set_up))

    def _describe(self, cell: Cell) -> Environment:
        spec = self.source.spec(cell.pipe)
        pipeline = self.pipelines.of(cell)
        return describe_environment(
            pipe=cell.pipe,
            model_source=spec.description,
            weights=weight_files(spec),
            device=pipeline.device,
            dtype=denoiser_of(pipeline).dtype,
            image_size=spec.image_size or own_size(pipeline),
            batch_size=self.settings.batch_size,
            guidance_scale=guidance_scale_of(pipeline, spec.guidance_scale),
            settings=settings_digests(pipeline),
            scheduler_defaults=open_settings(original_settings(pipeline)),
            stack=self.pipelines.prepared(cell).parts,
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
        return self._own_prompts or evaluation_prompts.default_prompts(self.source.spec(cell.pipe))

    @cached_property
    def _own_prompts(self) -> Sequence[str]:
        """The user's; none where there are none. Read once: a file that changes changes no search that has begun."""
        return read_prompt_file(self.settings.prompts).prompts if self.settings.prompts else ()

    def batches(self, cell: Cell, purpose: Purpose, num_samples: int | None = None, had: int = 0) -> list[Batch]:
        """All samples of ``purpose``, or the first of them, less the ``had`` first, batch by batch.

        Only the last may be smaller.
        """
        settings = self.settings
        count = num_samples or settings.num_samples
        samples = evaluation_prompts.select(self._prompts(cell), count, settings.seed, purpose)[had:]
        parts = [samples[start : start + settings.batch_size] for start in range(0, len(samples), settings.batch_size)]
        return [Batch(tuple(prompt for prompt, _ in part), tuple(seed for _, seed in part)) for part in parts]

    @contextmanager
    def generating(self, cell: Cell, params: Params, spent_on: str) -> Iterator[Generate]:
        """Generate beside others that do not time, and note what the time is spent on."""
        with (
            self.pipelines.lock.generating(),
            self.spent.on(spent_on),
            self.pipelines.generating(cell, params) as generate,
        ):
            yield generate

    def close(self) -> None:
        """Free the pipeline and close the store."""
        self.pipelines.unload()
        self.store.close()
