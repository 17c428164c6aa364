"""From command line and ini to one frozen :class:`Settings`; nothing to the right reads pytest's config."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.devices import Gpu
from pytest_diffaccel.gate_options import GATE_OPTIONS, GateSettings
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, Cell, cells
from pytest_diffaccel.option_types import OptionError, count, duration, option, positive

if TYPE_CHECKING:
    import pytest

#: Working folder of a search: store, logs, baseline images and locks.
WORK_DIR = Path(".diffaccel")
# Spellings that are not the name itself with other punctuation.
_SCHEDULER_ALIASES = {
    "ddimscheduler": "DDIM",
    "dpm": "DPM-Solver++",
    "dpmpp": "DPM-Solver++",
    "dpmsolvermultistepscheduler": "DPM-Solver++",
    "unipc": "UniPCMultistepScheduler",
}
# LPIPS beyond which a picture counts as another one; unrelated pictures of the embedded pipelines lie near 0.5.
_DEFAULT_MAX_QUALITY_LOSS = 0.25
_DEFAULT_SAMPLES = {"embedded": 8}
_DEFAULT_SAMPLES_OTHERWISE = 32


@dataclass(frozen=True)
class Settings:
    """All that a search is told.

    Attributes:
        cells: the cells to search, in matrix order.
        accelerators: names of the accelerators to search.
        num_samples: images scored a candidate, at least 1.
        batch_size: images a call, at least 1.
        coarse: whether the grids are the coarse ones.
        exhaustive: whether every grid point gets all samples; else only what may win is evaluated.
        blocks: timed blocks a candidate gets in an exhaustive search, at least 1; winners get more.
        models: ``"embedded"``, ``"hub"`` or the path of a TOML file.
        prompts: file with evaluation prompts, or None for the model source's own.
        seed: of the first image and of every random order.
        max_quality_loss: LPIPS above which a candidate cannot win.
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
    max_quality_loss: float
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

    @classmethod
    def from_options(cls, options: Namespace, accelerators: Sequence[str]) -> Settings:
        """Check every option.

        Args:
            options: pytest's parsed options, as :func:`add_options` declared them.
            accelerators: names of all registered accelerators.

        Raises:
            OptionError: naming the bad value and the valid ones.
        """
        # Here, for the sake of runs that have nothing to do with us: it reads TOML.
        from pytest_diffaccel.models.registry import ARCHITECTURE, NO_QUALITY

        coarse = options.grid == "coarse"
        if options.models == ARCHITECTURE:
            raise OptionError(f"--models: {NO_QUALITY}; give 'embedded', 'hub' or a TOML file")
        samples = options.num_samples or _DEFAULT_SAMPLES.get(options.models, _DEFAULT_SAMPLES_OTHERWISE)
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
            max_quality_loss=options.max_quality_loss,
            case_timeout_s=options.case_timeout,
            search_budget_s=_budget(options.search_budget, exhaustive=options.exhaustive),
            fresh=options.fresh,
            golden=Path(options.golden),
            update_golden=options.update_golden and not options.golden_new_only,
            golden_prune=options.golden_prune,
            store=options.store or f"sqlite:///{WORK_DIR / 'search.sqlite'}",
            picture_grid=_picture_grid(options.picture_grid),
            gpus=gpus(options.gpus),
            gate=GateSettings.from_options(options),
            report=_report(options.diffaccel_report, gate=options.gate),
        )


def chosen_cells(options: Namespace) -> list[Cell]:
    """The cells that ``--pipe``, ``--sched`` and ``--steps`` name; all of the matrix without them.

    Raises:
        OptionError: naming the bad value and the valid ones.
    """
    return cells(
        _choose("--pipe", options.pipe, PIPES),
        _choose("--sched", options.sched, SCHEDULERS, _SCHEDULER_ALIASES),
        [int(steps) for steps in _choose("--steps", options.steps, [str(steps) for steps in STEPS])],
    )


def _choose(
    option: str, given: Sequence[str] | None, known: Sequence[str], aliases: dict[str, str] | None = None
) -> list[str]:
    """The known names that ``given`` asks for, in their own order; all of them for ``all`` or nothing."""
    if not given:
        return list(known)
    spellings = {_plain(name): name for name in known} | (aliases or {})
    chosen: set[str] = set()
    for text in given:
        parts = text.split(",")
        # A name may have commas of its own; a list has no "and" at its end.
        if _plain(text) in spellings and re.search(r"\band\b", parts[-1].lower()):
            parts = [text]
        for part in filter(None, (part.strip() for part in parts)):
            if part.lower() == "all":
                chosen.update(known)
            elif _plain(part) in spellings:
                chosen.add(spellings[_plain(part)])
            else:
                raise OptionError(f"{option}: {part!r} is unknown; choose from {'; '.join(known)}; all")
    if not chosen:
        raise OptionError(f"{option}: nothing is named; choose from {'; '.join(known)}; all")
    return [name for name in known if name in chosen]


def _plain(name: str) -> str:
    """Name for comparison: lower case, no punctuation, no 'and'."""
    return re.sub(r"[^a-z0-9.]", "", re.sub(r"\band\b", "", name.lower()))


def gpus(given: str | None) -> tuple[str, ...] | None:
    """What ``--gpus`` names: numbers or names; empty for all, None where it is not given.

    Raises:
        OptionError: when it is given anything else, such as a path that stands behind it.
    """
    if given is None:
        return None
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


_MATRIX_OPTIONS = (
    option("--pipe", action="append", metavar="NAME", help="SD1.5, SD2.1, SDXL or all (default)"),
    option("--sched", action="append", metavar="NAME", help="DDIM, DPM-Solver++, UniPC or all (default)"),
    option("--steps", action="append", metavar="N", help="20, 25, 50 or all (default)"),
    option(
        "--search-targets",
        "--search_targets",
        action="append",
        metavar="NAME",
        help="accelerators to search: deepcache, tgate, tome, 'deepcache and tome', ... or all (default)",
    ),
    option("--grid", choices=["full", "coarse"], default="full", help="coarse: about a tenth of the points"),
    option("--exhaustive", action="store_true", help="measure every grid point in full, also what cannot win"),
    option("--models", default="embedded", metavar="SOURCE", help="embedded (default), hub, or a TOML file"),
    option("--gpus", nargs="?", const="all", metavar="LIST", help="use GPUs: all, or --gpus=0,1; workers take turns"),
)
_MEASURING_OPTIONS = (
    option(
        "--num-samples",
        "--num_samples",
        type=count,
        metavar="N",
        help=f"images scored a candidate (default: {_DEFAULT_SAMPLES['embedded']} for embedded pipelines, "
        f"else {_DEFAULT_SAMPLES_OTHERWISE})",
    ),
    option("--batch-size", "--batch_size", type=count, default=4, metavar="N", help="images a call (default: 4)"),
    option(
        "--blocks",
        type=count,
        metavar="N",
        help="timed blocks a candidate in an exhaustive search (default: 2; coarse grid: 1)",
    ),
    option("--prompts", metavar="FILE", help="evaluation prompts, one a line"),
    option("--seed", type=int, default=0, metavar="N", help="seed of the first image (default: 0)"),
    option(
        "--max-quality-loss",
        type=positive,
        default=_DEFAULT_MAX_QUALITY_LOSS,
        metavar="LPIPS",
        help=f"LPIPS above which a candidate cannot win (default: {_DEFAULT_MAX_QUALITY_LOSS})",
    ),
    option(
        "--search-budget",
        type=duration,
        metavar="TIME",
        help="30min, 2h, ...: the best winners that can be found in this time, most promising candidates first",
    ),
    option("--case-timeout", type=positive, metavar="SECONDS", help="fail a case that takes longer"),
)
_RECORD_OPTIONS = (
    option("--store", metavar="URL", help=f"measurements: SQLAlchemy URL (default: {WORK_DIR}/search.sqlite)"),
    option("--fresh", action="store_true", help="measure again what is stored"),
    option("--golden", default="golden/search_params.json", metavar="FILE", help="golden database of winners"),
    option("--update-golden", action="store_true", help="rewrite golden records that differ"),
    option("--golden-new-only", action="store_true", help="record new keys only, never rewrite one"),
    option("--golden-prune", action="store_true", help="remove golden records of chosen cells no longer searched"),
    option("--diffaccel-report", metavar="FILE", help="write all that was found as one HTML file"),
    option("--diffaccel-log", metavar="FILE", help="add a JSON line to FILE as each case ends"),
    option("--picture-grid", metavar="FILE", help="write a PNG: baseline beside each accelerator's winner"),
)
_GROUPS = {
    "diffusion acceleration: what to search": _MATRIX_OPTIONS,
    "diffusion acceleration: how to measure": _MEASURING_OPTIONS,
    "diffusion acceleration: what to keep": _RECORD_OPTIONS,
    "diffusion acceleration: regression gate": GATE_OPTIONS,
}


def add_options(parser: pytest.Parser) -> None:
    """Declare every option. What their values mean is :meth:`Settings.from_options`'s business."""
    for title, declared in _GROUPS.items():
        group = parser.getgroup(title)
        for one in declared:
            group.addoption(*one.names, dest=one.dest, **one.keywords)


def is_given(options: Namespace) -> bool:
    """Whether any of these options was given: an unrelated pytest run pays for nothing else."""
    return any(getattr(options, one.dest) != one.default for group in _GROUPS.values() for one in group)
