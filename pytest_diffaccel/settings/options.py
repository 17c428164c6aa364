"""The options of a search and of the gate: their names and help. What their values mean is the business of
:mod:`.search_settings`, which a pytest run that has nothing to do with us need not import.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.settings.gate_options import GATE_OPTIONS
from pytest_diffaccel.settings.option_types import count, duration, option, positive
from pytest_diffaccel.settings.work_folder import GOLDEN, WORK

if TYPE_CHECKING:
    import pytest

#: Folder of the search's and the gate's test functions, in a clone of the repository; the wheel has none.
BENCHES = "benches"
# LPIPS beyond which a picture counts as another one; unrelated pictures of the embedded pipelines lie near 0.5.
_DEFAULT_MAX_QUALITY_LOSS = 0.25
#: Images scored a candidate, by model source; where it is none of these.
DEFAULT_SAMPLES = {"embedded": 8}
DEFAULT_SAMPLES_OTHERWISE = 32

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
        help=f"images scored a candidate (default: {DEFAULT_SAMPLES['embedded']} for embedded pipelines, "
        f"else {DEFAULT_SAMPLES_OTHERWISE})",
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
    option("--store", metavar="URL", help=f"measurements: SQLAlchemy URL (default: {WORK.store})"),
    option("--fresh", action="store_true", help="measure again what is stored"),
    option("--golden", default=str(GOLDEN), metavar="FILE", help="golden database of winners"),
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
    """Declare every option."""
    for title, declared in _GROUPS.items():
        group = parser.getgroup(title)
        for one in declared:
            group.addoption(*one.names, dest=one.dest, **one.keywords)


def names() -> list[str]:
    """The spellings of these options: ``--pipe``, ..."""
    return [name for declared in _GROUPS.values() for one in declared for name in one.names]


def benches_command(*options: str) -> str:
    """What to type to run the benches with ``options``, and where, if they are not in the present folder."""
    command = shlex.join(["pytest", BENCHES, *options])
    return command if Path(BENCHES).is_dir() else f"{command} (in a clone of the repository: {BENCHES} is not here)"


def is_given(options: Namespace) -> bool:
    """Whether any of these options was given: an unrelated pytest run pays for nothing else."""
    return any(getattr(options, one.dest) != one.default for group in _GROUPS.values() for one in group)
