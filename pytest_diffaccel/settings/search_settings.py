"""From pytest's parsed options to one frozen :class:`Settings`; nothing further down reads pytest's config."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_diffaccel.accelerators.stack import EAGER, StackName
from pytest_diffaccel.devices import Gpu
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, Cell, cells
from pytest_diffaccel.measure.bounds import MetricBound
from pytest_diffaccel.measure.deciding import DEFAULT_MAX_LOSS, Deciding
from pytest_diffaccel.measure.measurement import SpeedClock
from pytest_diffaccel.measure.metrics.registry import MetricRegistry
from pytest_diffaccel.models.schedulers import classes_like, misplaced, named_scheduler
from pytest_diffaccel.pipes import PipeSpec, is_step_count, known
from pytest_diffaccel.rules import DIFFBENCH, DIFFBENCH_PROMPTS
from pytest_diffaccel.settings.gate_options import GateSettings
from pytest_diffaccel.settings.metric_options import chosen_metrics, deciding_metric, losses_that_matter
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import DEFAULT_SAMPLES, DEFAULT_SAMPLES_OTHERWISE, as_given
from pytest_diffaccel.settings.work_folder import GOLDEN, WORK, golden_of
from pytest_diffaccel.words import meant

# What people put between the parts of a name. Between digits and before a name it means something: 2-0, -20.
_BETWEEN = re.compile(r"(?<=[a-z])[\s,_&+-]+(?=[a-z0-9])|(?<=[0-9])[\s,_&+-]+(?=[a-z])")


#: Terms that decisions hold under: which points were searched, and how (:attr:`Settings.terms`).
ON_COARSE_GRID, OF_EVERY_POINT = "on the coarse grid", "of every point"


@dataclass(frozen=True)
class Settings:
    """All that a search is told.

    Attributes:
        cells: the cells to search, in matrix order.
        accelerators: names of the accelerators to search.
        num_samples: images scored per candidate, at least 1.
        batch_size: images per call, at least 1.
        coarse: whether the grids are the coarse ones.
        exhaustive: whether every grid point gets all samples; else only what may win is evaluated.
        blocks: timed blocks that a candidate gets in an exhaustive search, at least 1; winners get more.
        models: ``"embedded"``, ``"hub"`` or the path of a TOML file.
        stack: how pipelines are prepared before any method.
        prompts: evaluation prompts as ``FILE`` or ``FILE:COLUMN``, or None for the model source's own.
        seed: of the first image and of every random order.
        quality: the metric that decides, and how bad a winner may be.
        metrics: names of the metrics that winners and rivals get beside LPIPS, those of the bounds and the one that
            decides among them.
        bounds: on changes of metrics, which winners surely keep.
        by_mean: whether DiffBench's rule decides: means, without their intervals.
        heartbeat_s: seconds between two signs of life in the store.
        decide_by: the clock whose speed-ups decide which targets are reached.
        case_timeout_s: seconds after which a case fails; None for no limit.
        search_budget_s: seconds that the whole search may take; None for no limit.
        fresh: whether stored measurements are made again.
        golden: path of the golden database.
        update_golden: whether existing golden keys that differ are rewritten.
        golden_prune: whether golden keys of the chosen cells that are not in the matrix are removed.
        store: SQLAlchemy URL or SQLite path of the measurements.
        picture_grid: where to write the picture grid, or None.
        gpus: indices or names of the GPUs to use; None for the CPU, empty for all.
        gpu: the GPU that this process has been given; None for the CPU, and in xdist's controller.
        gate: what the gate is told; None for a search.
        report: where to write the HTML report, or None.
    """

    cells: tuple[Cell, ...]
    accelerators: tuple[str, ...]
    num_samples: int
    batch_size: int
    coarse: bool
    exhaustive: bool
    blocks: int
    models: str
    prompts: Path | None
    seed: int
    quality: Deciding
    decide_by: SpeedClock
    case_timeout_s: float | None
    search_budget_s: float | None
    fresh: bool
    golden: Path
    update_golden: bool
    golden_prune: bool
    store: str
    picture_grid: Path | None
    gpus: tuple[str, ...] | None
    gpu: Gpu | None = None
    gate: GateSettings | None = None
    report: Path | None = None
    metrics: tuple[str, ...] = ()
    bounds: tuple[MetricBound, ...] = ()
    by_mean: bool = False
    heartbeat_s: float = 60.0
    stack: StackName = EAGER

    @property
    def terms(self) -> tuple[str, ...]:
        """What decisions hold under beside their samples, in words; nothing of what is so by default."""
        said = {
            "by mean speed-ups": self.by_mean,
            "by device time": self.decide_by == "device",
            f"by {self.quality.name}": not self.quality.is_lpips,
            f"of losses up to {self.quality.worst}": self.quality.is_lpips and self.quality.worst != DEFAULT_MAX_LOSS,
            f"from {self.quality.worst} on": not self.quality.is_lpips,
            ON_COARSE_GRID: self.coarse,
            OF_EVERY_POINT: self.exhaustive,
        }
        return (*(words for words, holds in said.items() if holds), *sorted(f"with {bound}" for bound in self.bounds))

    @property
    def goes_on(self) -> str:
        """What goes on with this search where it was stopped, in words: ``--fresh`` would begin anew."""
        return f"the same command{' without --fresh' if self.fresh else ''} goes on"

    @classmethod
    def from_options(
        cls, options: Namespace, accelerators: Sequence[str], metrics: MetricRegistry | None = None
    ) -> Settings:
        """Check every option.

        Args:
            options: pytest's parsed options, as :func:`.options.add_options` declared them.
            accelerators: names of all registered accelerators.
            metrics: all registered metrics; None for the built-in ones.

        Raises:
            OptionError: naming the bad value and the valid ones.
        """
        # Here, for the sake of runs that have nothing to do with us: it reads TOML.
        from pytest_diffaccel.models.registry import ARCHITECTURE, NO_QUALITY

        coarse = options.grid == "coarse"
        if options.models == ARCHITECTURE:
            raise OptionError(f"--models: {NO_QUALITY}; give 'embedded', 'hub' or a TOML file")
        by_mean = options.rule == DIFFBENCH
        usual = DEFAULT_SAMPLES.get(options.models, DEFAULT_SAMPLES_OTHERWISE)
        samples = options.num_samples or (DIFFBENCH_PROMPTS if by_mean else usual)
        quality = deciding_metric(options.quality, options.max_quality_loss, metrics)
        secondary, bounds = chosen_metrics(
            options.metrics, options.bound, samples, metrics, quality.name, diffbench=by_mean
        )
        return cls(
            cells=tuple(chosen_cells(options)),
            accelerators=tuple(_choose("--search-targets", options.search_targets, accelerators)),
            num_samples=samples,
            batch_size=min(options.batch_size, samples),
            coarse=coarse,
            exhaustive=options.exhaustive,
            blocks=options.blocks or (1 if coarse else 2),
            models=options.models,
            prompts=Path(options.prompts) if options.prompts else None,
            seed=options.seed,
            quality=quality,
            decide_by=_decide_by(options),
            case_timeout_s=options.case_timeout,
            search_budget_s=_budget(options.search_budget, exhaustive=options.exhaustive),
            fresh=options.fresh,
            golden=_golden(options),
            update_golden=options.update_golden and not options.golden_new_only,
            golden_prune=options.golden_prune,
            store=options.store or f"sqlite:///{WORK.store}",
            picture_grid=_picture_grid(options.picture_grid),
            gpus=None if options.gpus is None else named_gpus(options.gpus),
            gate=GateSettings.from_options(
                options,
                losses_that_matter(options.gate_quality, metrics),
                choice=as_given(options, ("--pipe", "--sched", "--steps", "--search-targets")),
                place=as_given(options, ("--gpus", "--golden", "--models", "--stack", "--clip-model", "--prompts")),
            ),
            report=_report(options.diffaccel_report, gate=options.gate),
            metrics=secondary,
            bounds=bounds,
            by_mean=by_mean,
            heartbeat_s=options.heartbeat,
            stack=options.stack,
        )


def _golden(options: Namespace) -> Path:
    """Where winners go: those of one device of several, or of a stack, into a file of their own if none is named."""
    if options.golden != str(GOLDEN):
        return Path(options.golden)
    return golden_of(*_device_part(options), *([options.stack] if options.stack != EAGER else []))


def _device_part(options: Namespace) -> list[str]:
    """Of a golden file's name."""
    if options.ray_device is None:
        return []
    name = re.sub("[^a-z0-9]+", "-", options.ray_device.lower()).strip("-")
    if not name or options.ray is None:
        raise OptionError(f"--ray-device {options.ray_device!r}: it names a device of a cluster; give --ray with it")
    return [name]


def _decide_by(options: Namespace) -> SpeedClock:
    if options.decide_by == "wall":
        return "wall"
    if options.gpus is None:
        raise OptionError("--decide-by device: a GPU's own time needs --gpus")
    if options.exhaustive:
        raise OptionError("--decide-by device: --exhaustive times every candidate by the wall clock; leave one out")
    return "device"


def chosen_cells(options: Namespace, pipes: Iterable[PipeSpec] | None = None) -> list[Cell]:
    """The cells that ``--pipe``, ``--sched`` and ``--steps`` name; without them all of the matrix of 27.

    Args:
        options: parsed ones.
        pipes: those that can be named, of which all are taken where none is; None: those that are known, of which the
            built-in ones are taken.

    Raises:
        OptionError: naming the bad value and the valid ones.
    """
    by_name = {pipe.name: pipe for pipe in (known() if pipes is None else pipes)}
    default = PIPES if pipes is None else tuple(by_name)
    names = _choose(
        "--pipe", options.pipe, default, _pipe_among(by_name), [name for name in by_name if name not in default]
    )
    return [cell for name in names for cell in _cells_of(by_name[name], options)]


def _pipe_among(pipes: Mapping[str, PipeSpec]) -> Callable[[str], str | None]:
    return lambda text: next((name for name, pipe in pipes.items() if pipe.is_spelled(text)), None)


def _cells_of(pipe: PipeSpec, options: Namespace) -> list[Cell]:
    """The chosen cells of a pipe, whose own schedulers and steps are taken where none is named."""
    schedulers = _choose(
        "--sched", options.sched, pipe.schedulers, _scheduler, ["a diffusers scheduler's class name"], classes_like
    )
    usual = [str(count) for count in pipe.steps]
    steps = _choose("--steps", options.steps, usual, _step_count, ["any whole number from 1 to 1000"])
    named = {name: named_scheduler(name) for name in schedulers}
    if unknown := [name for name in schedulers if not named[name]]:
        where = f" of {pipe.models_file}" if pipe.models_file else ""
        raise OptionError(
            f"{pipe.name}{where}: {unknown[0]!r} is no scheduler for Stable Diffusion's noise schedule; write "
            f"{', '.join(SCHEDULERS)} or a class of diffusers such as EulerDiscreteScheduler"
        )
    chosen = dict.fromkeys(filter(None, named.values()))
    if reason := next(filter(None, (misplaced(name, pipe.schedulers[0]) for name in chosen)), ""):
        raise OptionError(f"--sched, {pipe.name}: {reason}")
    return cells([pipe.name], chosen, sorted({int(count) for count in steps}) if options.steps else pipe.steps)


def _scheduler(text: str) -> str | None:
    return named_scheduler(_plain(text))


def _step_count(text: str) -> str | None:
    number = int(text) if re.fullmatch("[0-9]{1,4}", text) else 0
    return str(number) if is_step_count(number) else None


def _choose(
    option: str,
    given: Sequence[str] | None,
    known: Sequence[str],
    other: Callable[[str], str | None] = lambda _: None,
    others: Sequence[str] = (),
    more: Callable[[str], Iterable[str]] = lambda _: (),
) -> list[str]:
    """The names that ``given`` asks for: the known ones in their own order, then others, sorted.

    Args:
        option: for refusals.
        given: what the user wrote; nothing and ``all`` stand for all known names.
        known: the names that are taken by themselves.
        other: the name that any other text stands for, also a known one; None for no name.
        others: what such names are, for refusals.
        more: other names that a text may be a misspelling of.
    """
    if not given:
        return list(known)
    spellings = {_plain(name): name for name in known}
    chosen: set[str] = set()
    for text in given:
        parts = text.split(",")
        # A name may have commas of its own; a list has no "and" at its end.
        if _plain(text) in spellings and re.search(r"\band\b", parts[-1].lower()):
            parts = [text]
        for part in filter(None, (part.strip() for part in parts)):
            if part.lower() == "all":
                chosen.update(known)
            elif name := spellings.get(_plain(part)) or other(part):
                chosen.add(name)
            else:
                near = meant(_plain(part), {_plain(name): name for name in (*known, *others, *more(part))})
                raise OptionError(f"{option}: {part!r} is unknown{near}; choose from {_listed(known, others)}")
    if not chosen:
        raise OptionError(f"{option}: nothing is named; choose from {_listed(known, others)}")
    return [*(name for name in known if name in chosen), *sorted(chosen - set(known))]


def _listed(known: Sequence[str], others: Sequence[str]) -> str:
    return "; ".join([*known, "all", *others])


def _plain(name: str) -> str:
    """Name for comparison: lower case, nothing between its parts, no 'and'."""
    return _BETWEEN.sub("", re.sub(r"\band\b", " ", name.lower()).strip())


def same_name(text: str | float, name: str | float) -> bool:
    """Whether a text spells the name of a pipe, a scheduler or an accelerator, or a number is the same."""
    if isinstance(text, str) and isinstance(name, str):
        pipe = next((known_pipe.name for known_pipe in known() if known_pipe.is_spelled(text)), None)
        return name in (pipe, named_scheduler(_plain(text))) or _plain(name) == _plain(text)
    return text == name


def named_gpus(given: str) -> tuple[str, ...]:
    """What ``--gpus`` names: numbers or names; empty for all.

    Raises:
        OptionError: when it is given anything else, such as a path that stands behind it.
    """
    if given == "all":
        return ()
    names = tuple(part.strip() for part in given.split(","))
    if all(re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name) for name in names):
        return names
    meant = f"; did you mean `--gpus=all {given}`?" if Path(given).exists() else ""
    raise OptionError(f"--gpus: {given!r} is not a list of GPU numbers or names (--gpus=0,1){meant}")


def _report(path: str | None, *, gate: bool) -> Path | None:
    if path is not None and gate:
        raise OptionError("--diffaccel-report: it shows a search; the gate's verdicts are in its own summary")
    if path is not None and Path(path).is_dir():
        raise OptionError(
            f"--diffaccel-report: {path!r} is a folder; name a file, such as {Path(path) / 'report.html'}"
        )
    return Path(path) if path else None


def _picture_grid(path: str | None) -> Path | None:
    if path is not None and not path.lower().endswith(".png"):
        raise OptionError(f"--picture-grid: {path!r} is no PNG; name a file, such as {path.rstrip('/')}.png")
    return Path(path) if path else None


def _budget(seconds: float | None, *, exhaustive: bool) -> float | None:
    if seconds is not None and exhaustive:
        raise OptionError("--search-budget: an exhaustive search measures everything; leave one of the two out")
    return seconds
