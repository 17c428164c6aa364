"""The options of a search and of the gate: their names and help. What their values mean is the business of
:mod:`.search_settings`, which a pytest run that has nothing to do with us need not import.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_diffaccel.rules import DIFFBENCH, OURS
from pytest_diffaccel.settings.gate_options import GATE_OPTIONS
from pytest_diffaccel.settings.option_types import DeclaredOption, count, duration, of_one_run, one_of, option, positive
from pytest_diffaccel.settings.work_folder import GOLDEN, WORK

if TYPE_CHECKING:
    import pytest

    from pytest_diffaccel.matrix import Cell

#: Folder of the search's and the gate's cases in a project, and the package that has them wherever it is installed.
BENCHES, INSTALLED_BENCHES = "benches", "pytest_diffaccel.benches"
#: Pytest's arguments for cases that an installed package carries, before its name; the command that runs them has
#: imported it already.
OF_PACKAGE = (
    "-W",
    "ignore:Module already imported so cannot be rewritten:pytest.PytestAssertRewriteWarning",
    "--pyargs",
)
#: Images scored per candidate, by model source; where it is none of these.
DEFAULT_SAMPLES = {"embedded": 8}
DEFAULT_SAMPLES_OTHERWISE = 32

_MATRIX_OPTIONS = (
    option("--pipe", action="append", metavar="NAME", help="SD1.5, SD2.1, SDXL or all (default), FLUX.1, or your own"),
    option(
        "--sched",
        action="append",
        metavar="NAME",
        help="DDIM, DPM-Solver++, UniPC, FlowMatchEuler, all (default: those of the pipe) or a diffusers class",
    ),
    option("--steps", action="append", metavar="N", help="any number, or all (default): 20, 25 and 50; FLUX.1: 28, 50"),
    option(
        "--search-targets",
        "--search_targets",
        action="append",
        metavar="NAME",
        help="accelerators to search: deepcache, tgate, tome, 'deepcache and tome', taylorseer, ... or all (default)",
    ),
    option(
        "--grid",
        type=one_of("full", "coarse"),
        metavar="GRID",
        default="full",
        help="full (default), or coarse: about a tenth of the points",
    ),
    option(
        "--exhaustive",
        when=lambda given: given.search_budget is None,
        action="store_true",
        help="measure every grid point in full, also what cannot win",
    ),
    option(
        "--models",
        file_pattern=r".*\.toml",
        default="embedded",
        metavar="SOURCE",
        help="embedded (default), hub, or a TOML file",
    ),
    option(
        "--stack",
        type=one_of("eager", "compiled"),
        metavar="NAME",
        default="eager",
        help="how the pipeline is prepared before any method: eager (default), or compiled (compiled blocks, fused "
        "projections, channels last): both what is accelerated and what it is compared with",
    ),
    option(
        "--clip-model",
        file_pattern=r"[./].*",
        metavar="SOURCE",
        help="what clip_score asks: embedded (default for --models embedded), a hub id (default otherwise: "
        "openai/clip-vit-base-patch32) or a folder",
    ),
    # Which GPUs there are is the machine's matter, not the project's.
    of_one_run(
        "--gpus",
        nargs="?",
        const="all",
        metavar="LIST",
        help="use GPUs: all, or --gpus=0,1; workers take turns",
    ),
    of_one_run(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="workers in a Ray cluster, one per free GPU with --gpus, else one per free CPU: the cluster of this "
        "machine, or a new one; --ray=ADDRESS names one, --ray=local starts one in any case",
    ),
    of_one_run(
        "--ray-device",
        metavar="NAME",
        help="of a Ray cluster, the nodes with this GPU or CPU only, such as 'NVIDIA H100'; winners go to "
        "golden/nvidia-h100.search_params.json",
    ),
)
#: Value of ``--rule``: ours decides, and scripts are judged by DiffBench's beside it.
BOTH = "both"
#: Searches and the judge have this option alike: to name it alone asks for neither.
RULE = option(
    "--rule",
    type=one_of(OURS, DIFFBENCH, BOTH),
    default=OURS,
    metavar="NAME",
    help="what decides, in searches and of scripts: ours (default), diffbench (ten prompts, mean speedup, CLIP score "
    "at most 5%% lower), or both, where ours decides and scripts are judged by diffbench, too",
)
_MEASURING_OPTIONS = (
    option(
        "--num-samples",
        "--num_samples",
        type=count,
        metavar="N",
        help=f"images scored per candidate (default: {DEFAULT_SAMPLES['embedded']} for embedded pipelines, "
        f"else {DEFAULT_SAMPLES_OTHERWISE})",
    ),
    option("--batch-size", "--batch_size", type=count, default=4, metavar="N", help="images per call (default: 4)"),
    option(
        "--blocks",
        type=count,
        metavar="N",
        help="timed blocks per candidate in an exhaustive search (default: 2; coarse grid: 1)",
    ),
    option(
        "--prompts",
        file_pattern=r"(.+?)(?::[^:/\\]*)?",
        metavar="FILE",
        help="evaluation prompts: one per line, or FILE:COLUMN of a .csv, .tsv, .json or .jsonl",
    ),
    option("--seed", type=int, default=0, metavar="N", help="seed of the first image (default: 0)"),
    option(
        "--quality",
        metavar="METRIC",
        help="what decides: lpips (default), psnr, ssim or another that compares with the unaccelerated pictures",
    ),
    option(
        "--max-quality-loss",
        metavar="VALUE",
        help="the worst mean of the metric that decides with which a candidate can win, such as 25 (dB) with "
        "--quality psnr (default: LPIPS 0.25)",
    ),
    option(
        "--metrics",
        action="append",
        metavar="NAME",
        help="more metrics of winners and of what is as fast with fewer steps: psnr, ssim, ... (they decide nothing)",
    ),
    option(
        "--bound",
        action="append",
        metavar="METRIC=CHANGE",
        help="how far a winner's metric may surely change from the unaccelerated pictures': clip_score=-5%%",
    ),
    RULE,
    option(
        "--decide-by",
        type=one_of("wall", "device"),
        metavar="CLOCK",
        default="wall",
        help="which speed-up decides on a GPU: by the wall clock (default), or by the GPU's own time",
    ),
    option(
        "--search-budget",
        when=lambda given: not given.exhaustive,
        type=duration,
        metavar="TIME",
        help="30min, 2h, ...: the best winners that can be found in this time, most promising candidates first",
    ),
    option("--case-timeout", type=positive, metavar="SECONDS", help="fail a case that takes longer"),
)
_RECORD_OPTIONS = (
    option(
        "--store",
        file_pattern="(?!.*://).*",
        metavar="URL",
        help=f"measurements: SQLAlchemy URL (default: {WORK.store})",
    ),
    option(
        "--heartbeat",
        type=duration,
        default=60.0,
        metavar="TIME",
        help="between two signs of life that a session gives to others with its store; they take over what one is at "
        "that misses five (default: 60s)",
    ),
    of_one_run("--fresh", action="store_true", help="measure again what is stored"),
    option(
        "--golden",
        file_pattern=".*",
        default=str(GOLDEN),
        metavar="FILE",
        help=f"golden database of winners (default: {GOLDEN})",
    ),
    of_one_run("--update-golden", action="store_true", help="rewrite golden records that differ"),
    of_one_run("--golden-new-only", action="store_true", help="record new keys only, never rewrite one"),
    of_one_run("--golden-prune", action="store_true", help="remove golden records of chosen cells no longer searched"),
    # What a run is to show is said where it is started, as with pytest's own --junitxml.
    of_one_run("--diffaccel-report", metavar="FILE", help="write all that was found as one HTML file"),
    of_one_run("--diffaccel-log", metavar="FILE", help="add a JSON line to FILE as each case ends"),
    of_one_run("--picture-grid", metavar="FILE", help="write a PNG: baseline beside each accelerator's winner"),
)
#: All of them, by title.
OPTION_GROUPS = {
    "diffusion acceleration: what to search": _MATRIX_OPTIONS,
    "diffusion acceleration: how to measure": _MEASURING_OPTIONS,
    "diffusion acceleration: what to keep": _RECORD_OPTIONS,
    "diffusion acceleration: regression gate": GATE_OPTIONS,
}
#: Every option of a search and of the gate.
SEARCH_OPTIONS: tuple[DeclaredOption, ...] = tuple(declared for group in OPTION_GROUPS.values() for declared in group)


def add_options(parser: pytest.Parser) -> None:
    """Declare every option."""
    for title, options in OPTION_GROUPS.items():
        group = parser.getgroup(title)
        for declared in options:
            group.addoption(*declared.names, dest=declared.dest, **declared.keywords)


#: The options of a first search: one cell, in minutes; without any it is 27 of them, for hours.
FIRST_SEARCH = ("--pipe", "SD1.5", "--sched", "DDIM", "--steps", "20", "--grid", "coarse")


def options_of(cell: Cell) -> tuple[str, ...]:
    """The options that choose one cell."""
    return ("--pipe", cell.pipe, "--sched", cell.scheduler, "--steps", str(cell.steps))


def as_given(options: Namespace, names: Collection[str]) -> tuple[str, ...]:
    """Those of the named options that were given, for a command that repeats them.

    Args:
        options: parsed ones.
        names: the first spellings of options of a search.
    """
    parts: list[str] = []
    for declared in SEARCH_OPTIONS:
        value, name = getattr(options, declared.dest, None), declared.names[0]
        if name in names and value != declared.default:
            for one in value if isinstance(value, list) else [value]:
                # A value that may be left out is no word of its own.
                parts += [f"{name}={one}"] if declared.keywords.get("nargs") == "?" else [name, str(one)]
    return tuple(parts)


def benches_command(*options: str) -> str:
    """What to type to run the benches with ``options`` in the present folder."""
    return shlex.join([*(("pytest", BENCHES) if Path(BENCHES).is_dir() else ("diffaccel", "search")), *options])


def command_of(arguments: Sequence[str]) -> str:
    """What was typed to start pytest with these arguments."""
    own = (*OF_PACKAGE, INSTALLED_BENCHES)
    if tuple(arguments[: len(own)]) == own:
        return shlex.join(["diffaccel", "search", *arguments[len(own) :]])
    return shlex.join(["pytest", *arguments])


def names_benches(arguments: Sequence[str]) -> bool:
    """Whether a command line names the installed benches, or one of them: then it is a search without any option."""
    return any(argument.partition("::")[0].startswith(INSTALLED_BENCHES) for argument in arguments)


def asks_for_search(options: Namespace, arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a search or the gate: by an option, or by naming the installed benches."""
    return is_given(options) or names_benches(arguments)


def is_given(options: Namespace) -> bool:
    """Whether any option that only searches have was given: an unrelated pytest run pays for nothing else."""
    own = (declared for declared in SEARCH_OPTIONS if declared is not RULE)
    return any(getattr(options, declared.dest) != declared.default for declared in own)
