"""Time full-size SD1.5, SD2.1, SDXL and FLUX.1 on a GPU, by their architectures alone, and record every run.

- ``python -m benchmarks.record_gpu kinds`` times short runs that hold every kind of step;
- ``python -m benchmarks.record_gpu winners --candidates FILE`` times whole generations of chosen candidates, one JSON
  object ``{"pipe", "scheduler", "steps", "params"}`` a line, next to the unaccelerated pipeline.

Every candidate is timed twice over: in wall time, as a user of eager diffusers gets it, and in device time, the time
for which the GPU was busy. Each block holds one run of the baseline and one of each of a few candidates, in random
order. Every run becomes a line of the output file at once; started again with the same file, the script goes on after
the last complete block. A candidate that does not fit into memory, or fails otherwise, is recorded with its error.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, TypeAlias

from diffusers.utils import logging

from pytest_diffaccel.accelerators.acceleration import Generate, accelerate
from pytest_diffaccel.accelerators.calls import guidance_scale_of, own_size
from pytest_diffaccel.accelerators.deepcache import branches_of_pipe
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.accelerators.tome import downsamples_of_pipe
from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.measure.blocks import run_blocks
from pytest_diffaccel.measure.busy_clock import busy
from pytest_diffaccel.measure.clock import timed
from pytest_diffaccel.measure.disturbance import watch_machine
from pytest_diffaccel.measure.measurement import RunTiming
from pytest_diffaccel.measure.memory import peak_memory_mb, reset_peak_memory
from pytest_diffaccel.measure.prompts import default_prompts, select
from pytest_diffaccel.models.architecture import SEED
from pytest_diffaccel.models.component_settings import settings_digests
from pytest_diffaccel.models.loading import load_pipeline
from pytest_diffaccel.models.registry import ARCHITECTURE, ModelSource
from pytest_diffaccel.models.schedulers import open_settings, original_settings, set_scheduler
from pytest_diffaccel.models.weights import weight_files
from pytest_diffaccel.pipes import denoiser_of, described
from pytest_diffaccel.records.environment import describe_environment

# Candidates that share a block's baseline.
_ABREAST = 4
# Steps of the runs that tell what every kind of step costs: a kind costs the same in any number of them.
_SHORT = 12
#: Images per call: enough that an unaccelerated call keeps an H200 busy.
BATCHES = {"SD1.5": 8, "SD2.1": 4, "SDXL": 4, "FLUX.1": 1}
# All four of T-GATE's kinds: planning and gated, each computed and reused.
_GATE = {"gate_step": 6, "sp_interval": 2, "fi_interval": 2, "warm_up": 0}
# With DeepCache every second step: computed and reused attention on full and on shallow steps.
_GATE_TOGETHER = {"gate_step": 6, "sp_interval": 1, "fi_interval": 3, "warm_up": 0}
_BRANCHES_TOGETHER = (0, 1, 3, 6)
_RATIOS = (0.25, 0.5, 0.75)
_INTERVALS, _ORDERS, _SKIPS = (2, 3), (0, 1, 2), ((0.12, 3), (0.24, 5))
_LARGEST_DOWNSAMPLE = 4  # deeper there is only the mid block
Timer: TypeAlias = Callable[[Generate, Sequence[str], Sequence[int]], tuple[list[Any], RunTiming]]


@dataclass(frozen=True)
class Task:
    """What to time, and how often.

    Attributes:
        step: ``"kinds"`` or ``"winners"``.
        models: the model source.
        device: torch device; None for the default one.
        batch: images per call; None for the pipe's own.
        wall_blocks: blocks in wall time.
        busy_blocks: blocks in device time; none without CUDA.
        until: monotonic time after which nothing new is begun.
        path: the output file.
    """

    step: str
    models: str
    device: str | None
    batch: int | None
    wall_blocks: int
    busy_blocks: int
    until: float
    path: Path

    def write(self, **row: Any) -> None:
        """Append a line to the output file."""
        with self.path.open("a", encoding="utf-8") as out:
            print(json.dumps(row), file=out)

    def done(self) -> set[str]:
        """Keys of the candidates that were finished."""
        if not self.path.exists():
            return set()
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return {row["key"] for row in rows if row["type"] == "done" and row["step"] == self.step}


def kind_candidates(pipe: str) -> list[Candidate]:
    """Every branch of DeepCache, every phase of T-GATE, ToMe's ratios, and of each combination some; all kinds of
    TaylorSeer's and MagCache's steps.
    """
    cell, registry = Cell(pipe, described(pipe).schedulers[0], _SHORT), default_registry()
    return [Candidate(cell, registry.for_params(params).name, params) for params in _kind_params(pipe)]


def _kind_params(pipe: str) -> Iterator[Params]:
    if described(pipe).denoiser == "transformer":
        for interval, order in product(_INTERVALS, _ORDERS):
            point = {"cache_interval": interval, "disable_cache_before_step": 3, "max_order": order}
            yield {"TaylorSeer": point}
        for threshold, skips in _SKIPS:
            yield {"MagCache": {"threshold": threshold, "max_skip_steps": skips, "retention_ratio": 0.2}}
        return
    for branch in branches_of_pipe(pipe):
        yield {"DeepCache": _cache(branch)}
    yield {"T-Gate": _GATE}
    downsamples = [level for level in downsamples_of_pipe(pipe) if level <= _LARGEST_DOWNSAMPLE]
    for downsample in downsamples:
        for ratio in _RATIOS:
            yield {"ToMe": {"ratio": ratio, "max_downsample": downsample}}
    first = downsamples[0]
    for branch in _BRANCHES_TOGETHER:
        yield {"DeepCache": _cache(branch), "T-Gate": _GATE_TOGETHER}
    for branch in _BRANCHES_TOGETHER[::2]:
        for ratio in _RATIOS[::2]:
            yield {"DeepCache": _cache(branch), "ToMe": {"ratio": ratio, "max_downsample": first}}
        yield {"DeepCache": _cache(branch), "T-Gate": _GATE_TOGETHER, "ToMe": {"ratio": 0.5, "max_downsample": first}}


def _cache(branch: int) -> dict[str, int]:
    return {"cache_interval": 2, "cache_branch_id": branch}


def record(task: Task, wanted: Sequence[Candidate]) -> None:
    """Time all candidates that the output file does not hold yet, pipe by pipe."""
    done = task.done()
    todo = [one for one in wanted if one.key not in done]
    print(f"{len(todo)} of {len(wanted)} candidates to time", flush=True)
    for pipe, same_pipe in groupby(todo, key=lambda one: one.cell.pipe):
        bench = _Bench(task, pipe)
        for cell, same in groupby(same_pipe, key=lambda one: one.cell):
            own = list(same)
            for start in range(0, len(own), _ABREAST):
                if time.monotonic() > task.until:
                    print("time is up; start again to go on", flush=True)
                    return
                bench.time(cell, own[start : start + _ABREAST])
                print(f"{task.step} {cell} {min(start + _ABREAST, len(own))}/{len(own)}", flush=True)
        bench.close()


class _Bench:
    """One pipe, loaded, and how its generations are made."""

    def __init__(self, task: Task, pipe: str) -> None:
        started = time.monotonic()
        self.task = task
        self.spec = ModelSource.from_option(task.models).spec(pipe)
        self.pipeline: Any = load_pipeline(pipe, models=task.models, device=task.device)
        count = task.batch or BATCHES[pipe]
        samples = select(default_prompts(self.spec), count, 0, "search")
        self.prompts, self.seeds = [prompt for prompt, _ in samples], [seed for _, seed in samples]
        self.environment = self._describe(pipe, count)
        self._warm: set[Cell] = set()
        task.write(type="environment", id=self.environment.id, environment=self.environment.to_json())
        print(f"{self.environment.model_source}: ready in {time.monotonic() - started:.1f} s", flush=True)

    def _describe(self, pipe: str, batch: int) -> Any:
        random = {"all": f"random, seed {SEED}"}
        return describe_environment(
            pipe=pipe,
            model_source=self.spec.description,
            weights=random if self.spec.kind == ARCHITECTURE else weight_files(self.spec),
            device=self.pipeline.device,
            dtype=denoiser_of(self.pipeline).dtype,
            image_size=self.spec.image_size or own_size(self.pipeline),
            batch_size=batch,
            guidance_scale=guidance_scale_of(self.pipeline, self.spec.guidance_scale),
            settings=settings_digests(self.pipeline),
            scheduler_defaults=open_settings(original_settings(self.pipeline)),
        )

    def time(self, cell: Cell, wanted: Sequence[Candidate]) -> None:
        """Warm up and time a few candidates of one cell; what fails is recorded and left out."""
        set_scheduler(self.pipeline, cell.scheduler)
        with ExitStack() as stack:
            options = {"steps": cell.steps, **self.spec.call_options}
            baseline = stack.enter_context(accelerate(self.pipeline, {}, **options))
            generators = {one: stack.enter_context(accelerate(self.pipeline, one.params, **options)) for one in wanted}
            if cell not in self._warm:
                self._count(Candidate(cell, "", {}), baseline)
                self._warm.add(cell)
            ready = {one: generate for one, generate in generators.items() if self._count(one, generate)}
            if ready:
                self._blocks(baseline, ready, "wall", self.task.wall_blocks, timed)
                if self.pipeline.device.type == "cuda" and self.task.busy_blocks:
                    self._blocks(baseline, ready, "busy", self.task.busy_blocks, busy)
        for one in wanted:
            self.task.write(type="done", step=self.task.step, key=one.key)

    def _count(self, candidate: Candidate, generate: Generate) -> bool:
        """The first generation, which is not timed: whether it went well."""
        device = self.pipeline.device
        reset_peak_memory(device)
        try:
            generate.counted(self.prompts, self.seeds)
        except (RuntimeError, ValueError) as error:
            first_line = str(error).partition("\n")[0]
            self._write(candidate, type="failed", error=f"{type(error).__name__}: {first_line}")
            print(f"{candidate.key} failed: {first_line}", flush=True)
            return False
        self._write(candidate, type="counted", fired=generate.fired, peak_memory_mb=round(peak_memory_mb(device), 1))
        return True

    def _blocks(
        self, baseline: Generate, ready: dict[Candidate, Generate], clock: str, count: int, timer: Timer
    ) -> None:
        def run(generate: Generate) -> Callable[[int], RunTiming]:
            return lambda _index: timer(generate, self.prompts, self.seeds)[1]

        runs = [run(generate) for generate in ready.values()]
        watch = watch_machine(self.pipeline.device, threads=1)
        for rows in run_blocks(run(baseline), runs, count, seed=str(len(ready)), watch=watch):
            for candidate, block in zip(ready, rows, strict=True):
                self._write(
                    candidate,
                    type="block",
                    clock=clock,
                    started_at=block.started_at,
                    disturbance=block.disturbance,
                    baseline=_timing(block.baseline),
                    run=_timing(block.runs[0]),
                )

    def _write(self, candidate: Candidate, **row: Any) -> None:
        cell = candidate.cell
        where = {"pipe": cell.pipe, "scheduler": cell.scheduler, "steps": cell.steps}
        what = {"accelerator": candidate.accelerator, "params": candidate.params, "environment": self.environment.id}
        self.task.write(step=self.task.step, **where, **what, **row)

    def close(self) -> None:
        """Free the pipeline's memory."""
        cuda = self.pipeline.device.type == "cuda"
        self.pipeline = None
        gc.collect()
        if cuda:
            import torch

            torch.cuda.empty_cache()


def _timing(run: RunTiming) -> dict[str, Any]:
    return {"total_s": round(run.total_s, 7), "step_s": [round(value, 7) for value in run.step_s]}


def read_candidates(path: Path) -> Iterator[Candidate]:
    """Candidates to verify, from a file of JSON lines."""
    registry = default_registry()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        cell = Cell(row["pipe"], row["scheduler"], row["steps"])
        yield Candidate(cell, registry.for_params(row["params"]).name, row["params"])


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["kinds", "winners"])
    parser.add_argument("--pipe", choices=list(BATCHES), action="append", help="default: all")
    parser.add_argument("--candidates", type=Path, help="for winners: what to time, as JSON lines")
    parser.add_argument("--output", type=Path, default=Path(".diffaccel/gpu.jsonl"), help="JSON lines, appended to")
    parser.add_argument("--models", default="architecture", help="model source (default: architecture)")
    parser.add_argument("--device", help="torch device (default: CUDA where there is any)")
    parser.add_argument("--batch-size", type=int, help="images per call (default: 8 for SD1.5, 1 for FLUX.1, else 4)")
    parser.add_argument("--steps", type=int, help="for kinds: denoising steps instead of the plan's")
    parser.add_argument("--blocks", type=int, help="blocks in wall time (default: 1 for kinds, 3 for winners)")
    parser.add_argument("--busy-blocks", type=int, help="blocks in device time (default: 1 for kinds, 2 for winners)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after this time")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # SDXL's pipeline warns at every decoding that it casts the VAE
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    winners = arguments.step == "winners"
    if winners and arguments.candidates is None:
        parser.error("winners needs --candidates")
    wall = arguments.blocks or (3 if winners else 1)
    busy_blocks = arguments.busy_blocks if arguments.busy_blocks is not None else 2 if winners else 1
    task = Task(
        step=arguments.step,
        models=arguments.models,
        device=arguments.device,
        batch=arguments.batch_size,
        wall_blocks=wall,
        busy_blocks=busy_blocks,
        until=time.monotonic() + arguments.seconds,
        path=arguments.output,
    )
    pipes = arguments.pipe or list(BATCHES)
    chosen = list(read_candidates(arguments.candidates)) if winners else [x for p in pipes for x in kind_candidates(p)]
    if arguments.steps and not winners:
        chosen = [replace(one, cell=replace(one.cell, steps=arguments.steps)) for one in chosen]
    record(task, [one for one in chosen if one.cell.pipe in pipes])


if __name__ == "__main__":
    main()
