"""The brute force that a search replaces: a script that generates every grid point's pictures, one after the other.

Run ``python -m benchmarks.plain_loop --pipe SD1.5 --sched DDIM --steps 20 --grid coarse --result loop.json``. It takes
the options of ``pytest benches`` and goes by those that say what is searched: cells, accelerators, grid, models, GPUs,
samples, batch size, prompts, seed and largest loss. 52 points (one cell, coarse grid, 8 samples) take about two minutes
on a CPU core, the full grid of 358 about a quarter of an hour.

It is as quick as such a script can be made: pictures stay in memory, nothing is counted, checked or watched, LPIPS is
computed in batches, and the embedded pipelines run on one thread, as in a search. Of several GPUs it uses the first. A
point's speed-up is the quotient of two wall times, each taken once, and the winner of a target is the point of least
loss whose speed-up reaches it. Standard error is told every half minute how far it is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from benchmarks.output import Progress
from pytest_diffaccel import accelerate, load_pipeline
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.devices import NoSuchGpu, choose_gpus, number_of_gpus, use_gpu
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell, Params, candidates
from pytest_diffaccel.measure.metrics.lpips import lpips_distances
from pytest_diffaccel.measure.prompt_files import read_prompt_file
from pytest_diffaccel.measure.prompts import default_prompts, select
from pytest_diffaccel.measure.threads import use_one_thread, use_share_of_cores, wait_passively
from pytest_diffaccel.models.registry import ModelSource
from pytest_diffaccel.models.schedulers import set_scheduler
from pytest_diffaccel.records.environment import device_name
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.jsonfile import write_text
from pytest_diffaccel.settings.option_types import OptionError
from pytest_diffaccel.settings.options import add_options
from pytest_diffaccel.settings.search_settings import Settings

if TYPE_CHECKING:
    import pytest
    from PIL.Image import Image

    from pytest_diffaccel.accelerators.acceleration import Generate

# What a script imports at its top: else the first point of an accelerator would be timed with its import.
_LIBRARIES = ("DeepCache", "tgate", "tomesd")
_SECONDS_DECIMALS, _RATIO_DECIMALS, _LOSS_DECIMALS = 5, 5, 6
# Between two lines that say how far the loop is.
_NEWS_S = 30.0


@dataclass(frozen=True)
class Scene:
    """A cell with its loaded pipeline and its samples.

    Attributes:
        cell: the cell.
        pipeline: the diffusers pipeline, with the cell's scheduler.
        batches: prompts and seeds of each call; only the last may be fewer.
        call_options: the model source's own options of a call.
    """

    cell: Cell
    pipeline: Any
    batches: Sequence[tuple[Sequence[str], Sequence[int]]]
    call_options: Mapping[str, Any]

    @contextmanager
    def generating(self, params: Params) -> Iterator[Generate]:
        """Generate with ``params``; ``{}`` is the baseline."""
        with accelerate(self.pipeline, params, steps=self.cell.steps, **self.call_options) as generate:
            yield generate

    def pictures(self, params: Params) -> tuple[list[Image], float]:
        """All samples with ``params``, and the seconds that they took."""
        with self.generating(params) as generate:
            began = time.perf_counter()
            images = [image for batch in self.batches for image in generate.observed(*batch, None)]
            return images, time.perf_counter() - began

    def losses(self, images: Sequence[Image], references: Sequence[Image]) -> tuple[float, ...]:
        """LPIPS of each picture, computed on the pipeline's device."""
        return tuple(lpips_distances(images, references, str(self.pipeline.device)))


@dataclass(frozen=True)
class Timed:
    """A grid point as the loop sees it.

    Attributes:
        candidate: what it is.
        seconds: that its samples took.
        speedup: the baseline's seconds over these.
        losses: LPIPS of each sample.
    """

    candidate: Candidate
    seconds: float
    speedup: float
    losses: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, rounded."""
        return {
            "candidate": self.candidate.key,
            "seconds": round(self.seconds, _SECONDS_DECIMALS),
            "speedup": round(self.speedup, _RATIO_DECIMALS),
            "lpips": [round(loss, _LOSS_DECIMALS) for loss in self.losses],
        }


class _Declared:
    """Stands in for pytest's parser, so that options are those of a search, and mean the same."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser

    def getgroup(self, title: str) -> _Declared:
        """One group does for all."""
        return self

    def addoption(self, *names: str, **keywords: Any) -> None:
        """Declare an option."""
        self._parser.add_argument(*names, **keywords)


def search_parser(description: str = "") -> argparse.ArgumentParser:
    """A parser of the options of ``pytest benches``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(cast("pytest.Parser", _Declared(parser)))
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What parsed options of a search mean.

    Raises:
        SystemExit: naming the bad value, or the GPU that is not there.
    """
    try:
        settings = Settings.from_options(arguments, default_registry().names)
        if settings.gpus is not None:
            choose_gpus(settings.gpus)
    except (OptionError, NoSuchGpu) as error:
        raise SystemExit(str(error)) from None
    return settings


def points(settings: Settings, cell: Cell) -> list[Candidate]:
    """Every grid point of a cell, accelerator by accelerator."""
    chosen = default_registry().select(settings.accelerators)
    return list(candidates([cell], chosen, coarse=settings.coarse))


def scenes(settings: Settings) -> Iterator[Scene]:
    """Each cell, ready to generate in this process; each pipe is loaded once."""
    wait_passively()
    if settings.gpus is not None:
        use_gpu(choose_gpus(settings.gpus)[0])
    if settings.models == "embedded":
        use_one_thread()
    elif settings.gpus is not None:
        use_share_of_cores(number_of_gpus(), 1)
    for name in _LIBRARIES:
        import_module(name)
    # Else it says for every picture that CLIP cut a long prompt off.
    import_module("diffusers.utils.logging").set_verbosity_error()
    source = ModelSource.from_option(settings.models)
    for pipe, cells in groupby(settings.cells, key=lambda cell: cell.pipe):
        pipeline = load_pipeline(pipe, models=source, device="cpu" if settings.gpus is None else "cuda")
        spec = source.spec(pipe)
        prompts = read_prompt_file(settings.prompts).prompts if settings.prompts else default_prompts(spec)
        samples = select(prompts, settings.num_samples, settings.seed, "search")
        size = settings.batch_size
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        batches = [([prompt for prompt, _ in part], [seed for _, seed in part]) for part in parts]
        for cell in cells:
            set_scheduler(pipeline, cell.scheduler)
            yield Scene(cell, pipeline, batches, spec.call_options)


def loop(scene: Scene, grid: Iterable[Candidate]) -> Iterator[Timed]:
    """Generate, time and score every point of a cell, one after the other."""
    with scene.generating({}) as baseline:
        baseline.observed(*scene.batches[0], None)  # the first call of a process is slow
    references, baseline_s = scene.pictures({})
    for candidate in grid:
        images, seconds = scene.pictures(candidate.params)
        yield Timed(candidate, seconds, baseline_s / seconds, scene.losses(images, references))


def winners(timed: Iterable[Timed], max_loss: float) -> dict[GoldenKey, Candidate | None]:
    """For each target, the point of least loss that reaches it; None where none of allowed loss does.

    Args:
        timed: all points of some cells and accelerators.
        max_loss: largest mean LPIPS allowed.
    """
    found: dict[GoldenKey, Candidate | None] = {}
    least: dict[GoldenKey, float] = {}
    for one in timed:
        cell, loss = one.candidate.cell, fmean(one.losses)
        for target in TARGETS:
            key = GoldenKey(cell, one.candidate.accelerator, target)
            found.setdefault(key, None)
            if one.speedup >= target and loss <= max_loss and loss < least.get(key, float("inf")):
                found[key], least[key] = one.candidate, loss
    return found


def main() -> None:
    """Loop over all cells and write what was found."""
    began = time.perf_counter()
    parser = search_parser(__doc__ or "")
    parser.add_argument("--result", type=Path, required=True, metavar="FILE", help="where the JSON goes")
    arguments = parser.parse_args()
    settings = settings_of(arguments)
    timed: list[Timed] = []
    device = ""
    for scene in scenes(settings):
        device = device_name(scene.pipeline.device)
        grid = points(settings, scene.cell)
        progress = Progress(len(grid), "points", _NEWS_S)
        for one in loop(scene, grid):
            timed.append(one)
            progress.add(1, str(scene.cell))
    result = {
        "device": device,
        "points": [one.to_json() for one in timed],
        "winners": {
            str(key): winner and winner.params for key, winner in winners(timed, settings.quality.worst).items()
        },
        "seconds": round(time.perf_counter() - began, 3),
    }
    write_text(arguments.result, json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
