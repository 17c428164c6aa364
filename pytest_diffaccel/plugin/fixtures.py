"""What a search's test functions use: the session's search, and a case that reports what it found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_diffaccel.plugin import workers
from pytest_diffaccel.plugin.case_items import gate_case_of, group_of, groups_with_winners
from pytest_diffaccel.plugin.case_results import put_result
from pytest_diffaccel.plugin.refusals import refusal
from pytest_diffaccel.plugin.registered import methods_of, metrics_of, pipes_of

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry
    from pytest_diffaccel.gate.case_plan import GateCase
    from pytest_diffaccel.gate.gate_run import GateRun
    from pytest_diffaccel.gate.verdict import GateVerdict
    from pytest_diffaccel.matrix import Candidate, Group, Params
    from pytest_diffaccel.measure.measurement import Measurement
    from pytest_diffaccel.measure.metrics.registry import MetricRegistry
    from pytest_diffaccel.search.results import Measured, Winners
    from pytest_diffaccel.search.search_run import SearchRun, SearchSession
    from pytest_diffaccel.settings.search_settings import Settings

_RUN = pytest.StashKey["SearchRun"]()
_GATE = pytest.StashKey["GateRun | None"]()
# The case of the gate that failed first, by why.
_FAILED_FIRST = pytest.StashKey[dict[str, str]]()


def search_run(config: pytest.Config) -> SearchRun:
    """The session's search, made at the first use.

    Raises:
        pytest.UsageError: for a bad option.
    """
    if _RUN not in config.stash:
        from pytest_diffaccel.search.search_run import SearchRun

        try:
            registry, metrics = methods_of(config), metrics_of(config)
            settings = workers.with_gpu(_settings(config), config)
            session = workers.session_of(config)
            config.stash[_RUN] = SearchRun(settings, registry, session, metrics)
            config.stash[_GATE] = _gate_of(settings, registry, session, metrics)
        except (ValueError, OSError) as error:
            raise refusal(config, error) from error
    return config.stash[_RUN]


def _settings(config: pytest.Config) -> Settings:
    """What the options ask for, on whatever GPU; raises what they are refused with."""
    from pytest_diffaccel.models.registry import know_pipes
    from pytest_diffaccel.settings.search_settings import Settings

    know_pipes(pipes_of(config), config.option.models)
    return Settings.from_options(config.option, methods_of(config).names, metrics_of(config))


def use_ray(config: pytest.Config) -> None:
    """Let a session's workers be in the Ray cluster that ``--ray`` names.

    Raises:
        pytest.UsageError: for a bad option, and for a cluster that cannot do the session's work.
    """
    from pytest_diffaccel.plugin import ray_cluster

    ray_cluster.check_options(config)
    try:
        settings = _settings(config)
    except (ValueError, OSError) as error:
        raise refusal(config, error) from error
    if not config.option.collectonly:
        ray_cluster.use_cluster(config, settings)


def gate_run(config: pytest.Config) -> GateRun | None:
    """The session's gate, made with its search when pytest was configured; None in a session without ``--gate``."""
    return config.stash.get(_GATE, None)


def _gate_of(settings: Settings, registry: Registry, session: SearchSession, metrics: MetricRegistry) -> GateRun | None:
    if settings.gate is None:
        return None
    from pytest_diffaccel.gate.gate_run import GateRun

    return GateRun(settings, settings.gate, registry, session, metrics)


def is_searching(config: pytest.Config) -> bool:
    """Whether this session has a search."""
    return _RUN in config.stash


def keep_groups_together(config: pytest.Config) -> None:
    """Under ``-n``, one worker gets all of a group, unless the user chose another distribution."""
    if getattr(config.option, "dist", None) == "no" and config.option.numprocesses:
        config.option.dist = "loadgroup"


@contextmanager
def _refusals_in_words(*more: type[Exception]) -> Iterator[None]:
    """What is missing (weights, a file) or not to be seen fails a case with the reason alone, without a traceback.

    Args:
        more: what else does.
    """
    from pytest_diffaccel.measure.degenerate import DegeneratePictures
    from pytest_diffaccel.measure.metrics.base import MetricFault
    from pytest_diffaccel.records.tables import StoreError
    from pytest_diffaccel.search.cases import FailedElsewhere
    from pytest_diffaccel.search.pipelines import Unavailable

    told: tuple[type[Exception], ...] = (StoreError, Unavailable, DegeneratePictures, MetricFault, FailedElsewhere)
    try:
        yield
    except (*told, *more) as error:  # not pytest.fail, which would show what it comes from, the same words, too
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@contextmanager
def _refusals_of_cells_in_words() -> Iterator[None]:
    """The same, and a scheduler that cannot be followed at a cell's number of steps, of which each case would tell."""
    from pytest_diffaccel.models.schedulers import UnfollowedTimesteps

    with _refusals_in_words(UnfollowedTimesteps):
        yield


class Case:
    """Runs one case's work and puts its result on the case's report."""

    def __init__(self, run: SearchRun, item: pytest.Item) -> None:
        self._run = run
        self._item = item
        # Marks the case's reports from the start: one that fails has nothing else.
        from pytest_diffaccel.search.results import Broken

        group = group_of(item)
        if group is not None:
            put_result(item, Broken(*group))

    def measure(self, candidate: Candidate) -> Measured:
        """Measure a candidate (:meth:`.SearchRun.measure`); the case is skipped when it cannot win, or does not fit."""
        from pytest_diffaccel.search.cases import NotWorthwhile
        from pytest_diffaccel.search.results import Skipped

        try:
            with _refusals_of_cells_in_words():
                follow = candidate.group in groups_with_winners(self._item.session)
                return put_result(self._item, self._run.measure(candidate, others_follow=follow))
        except NotWorthwhile as error:
            put_result(self._item, Skipped(candidate, str(error)))
            pytest.skip(str(error))

    def find_winners(self, group: Group) -> Winners:
        """Choose a group's winners, verify a cell's; skipped while candidates, or time for them, are missing."""
        cell, accelerator = group
        wanted = groups_with_winners(self._item.session)
        with _refusals_of_cells_in_words():
            result = put_result(self._item, self._run.find_winners(cell, accelerator, wanted))
        if result.refused:
            if result.refused.why != "failed":
                pytest.skip(result.refused.text)
            pytest.fail(result.refused.text, pytrace=False)
        decided = result.of_cell.decided if result.of_cell else ()
        if not result.provisional and not decided and result.left:
            pytest.skip(f"--search-budget: no winner yet, and no time for {result.left} promising candidates")
        return result


class Judgement:
    """Judges one case of the gate and puts the verdict on the case's report."""

    def __init__(self, gate: GateRun, item: pytest.Item) -> None:
        self._gate = gate
        self._item = item
        # From the start: a case that breaks off has nothing else.
        from pytest_diffaccel.search.results import Broken

        case = gate_case_of(item)
        if case is not None:
            put_result(item, Broken(case.cell, case=case.key))

    def judge(self, case: GateCase) -> GateVerdict:
        """Judge a case (:meth:`.GateRun.judge`); it fails when it regressed, or with ``--gate-strict`` is undecided."""
        with _refusals_in_words():
            result = put_result(self._item, self._gate.judge(case))
        failing = ("regressed", "refused", *(("inconclusive",) if self._gate.gate.strict else ()))
        if result.status in failing:
            pytest.fail(self._once(case, result.verdict.describe()), pytrace=False)
        return result

    def _once(self, case: GateCase, text: str) -> str:
        """Why a case fails; in short where another one of this process has failed for the very same reason."""
        first = self._item.session.stash.setdefault(_FAILED_FIRST, {}).setdefault(text, case.key)
        return text if first == case.key else f"{text.partition(':')[0]}, as {first} says"


@pytest.fixture(scope="session")
def diffaccel_run(pytestconfig: pytest.Config) -> Iterator[SearchRun]:
    """The session's search."""
    run = search_run(pytestconfig)
    yield run
    run.close()


@pytest.fixture
def diffaccel_search(diffaccel_run: SearchRun, request: pytest.FixtureRequest) -> Case:
    """What a case calls to measure its candidate or to find its group's winners."""
    return Case(diffaccel_run, request.node)


@pytest.fixture(scope="session")
def diffaccel_gate_run(pytestconfig: pytest.Config) -> Iterator[GateRun]:
    """The session's gate."""
    gate = gate_run(pytestconfig)
    if gate is None:
        raise pytest.UsageError("a case of the gate needs --gate")
    yield gate
    gate.close()


@pytest.fixture
def diffaccel_gate(diffaccel_gate_run: GateRun, request: pytest.FixtureRequest) -> Judgement:
    """What a case of the gate calls to be judged."""
    return Judgement(diffaccel_gate_run, request.node)


class OwnCases:
    """Measures what a test of the user's own asks for, and puts the figures on the test's report."""

    def __init__(self, run: SearchRun, item: pytest.Item) -> None:
        self._run = run
        self._item = item

    def __call__(
        self, pipe: str, params: Params, *, scheduler: str | None = None, steps: int = 20, blocks: int = 3
    ) -> Measurement:
        """Measure ``params`` against the unaccelerated pipeline (:func:`.measure_own`).

        Model source, samples, batch size, prompts, seed and GPUs are those of pytest's options. Nothing is stored.

        Args:
            pipe: ``"SD1.5"``, ``"SD2.1"``, ``"SDXL"``, ``"FLUX.1"`` or the name of one of your own.
            params: parameters by method, for example ``{"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}}``.
            scheduler: ``"DDIM"``, ``"DPM-Solver++"``, ``"UniPCMultistepScheduler"`` or any diffusers scheduler by
                class name that calls the denoiser once per step; None: the first of the pipe's, such as ``"DDIM"``.
            steps: denoising steps of both, at least 1.
            blocks: timed blocks, at least 1; more of them make the interval of the speed-up narrower.

        Returns:
            The measurement: ``speedup`` and ``quality.lpips`` with ``value``, ``low`` and ``high``, ``fired``,
            ``peak_memory_mb`` and all timed runs.

        Raises:
            ValueError: naming the bad value and the valid ones.
            MethodDidNotAct: when a method had no effect.

        Pictures that say nothing, accelerated or not, fail the test in words.
        """
        from pytest_diffaccel.matrix import Cell
        from pytest_diffaccel.pipes import described
        from pytest_diffaccel.search.evaluate.own_case import measure_own

        with _refusals_in_words():
            scheduler = scheduler or described(pipe).schedulers[0]
            made = measure_own(self._run.bench, Cell(pipe, scheduler, steps), params, blocks)
        key, speedup, lpips = made.candidate.key, made.speedup, made.quality.lpips
        self._item.user_properties += [
            ("candidate", key),
            ("speedup", f"{speedup.value:.6g}"),
            ("speedup_ci95", f"[{speedup.low:.6g}, {speedup.high:.6g}]"),
            ("lpips", f"{lpips.value:.6g}"),
            ("lpips_ci95", f"[{lpips.low:.6g}, {lpips.high:.6g}]"),
            *((f"fired_{name}", str(count)) for name, count in made.fired.items()),
        ]
        return made


@pytest.fixture
def diffaccel(diffaccel_run: SearchRun, request: pytest.FixtureRequest) -> OwnCases:
    """What a test of your own calls to measure any parameters with any scheduler and number of steps."""
    return OwnCases(diffaccel_run, request.node)
