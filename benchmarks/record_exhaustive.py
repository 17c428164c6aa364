"""Record what an exhaustive search of three cells would see, for the benchmarks that replay it.

Three steps, each resumable, into a working folder:

- ``python -m benchmarks.record_exhaustive quality --pipe SD1.5`` makes every point's samples and scores them; on a GPU
  (``--device cuda``, in several processes with ``--shard 0/4``) it takes minutes, on two CPU cores hours;
- ``python -m benchmarks.record_exhaustive times --pipe SD1.5`` times every point in a block with the baseline, and some
  points in many blocks; the machine must be quiet, and it is the CPU's times that count. Processes with a ``--shard``
  each may share a machine that has more cores than they are, each bound to one (``taskset``);
- ``python -m benchmarks.record_exhaustive pack`` writes ``benchmarks/data/exhaustive.parquet`` and ``blocks.parquet``;
  what the folder does not hold stays as it was packed before.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.output import needed
from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import Registry, default_registry
from pytest_diffaccel.matrix import Candidate, Cell, Params, Point

CELLS = {
    "SD1.5": Cell("SD1.5", "DDIM", 20),
    "SD2.1": Cell("SD2.1", "DPM-Solver++", 20),
    "SDXL": Cell("SDXL", "UniPCMultistepScheduler", 25),
}
DATA = Path(__file__).resolve().parent / "data"
NUM_SAMPLES = 32
# Images per timed call: about as long per step in all three pipes, on one thread.
TIMED_BATCH = {"SD1.5": 2, "SD2.1": 1, "SDXL": 1}
# Points per group: the search's grid, the corners of the whole space, and a seeded choice of the rest of it.
_POINTS = 130
# Points timed in many blocks, and how many; one of them is the baseline itself.
_DEEP_POINTS, _DEEP_BLOCKS = 18, 20
# Candidates that share a block's baseline.
_ABREAST = 6
_SEED = 20261123
#: Pipe, accelerator and parameters, as packed.
_Name: TypeAlias = tuple[str, str, str]


def points(cell: Cell, accelerator: Accelerator) -> list[Params]:
    """The recorded points of a group: the full grid, the space's corners, and a seeded sample of the space."""
    spaces = [method.space(cell) for method in accelerator.methods]
    names = [method.name for method in accelerator.methods]
    chosen = {json.dumps(params): params for params in accelerator.grid(cell, coarse=False)}

    def add(row: Sequence[Point]) -> None:
        params = dict(zip(names, row, strict=True))
        chosen.setdefault(json.dumps(params), params)

    for row in product(*(_corners(space) for space in spaces)):
        add(row)
    draw = random.Random(f"{_SEED} {cell} {accelerator.name}")
    most = 1
    for space in spaces:
        most *= len(space)
    while len(chosen) < min(_POINTS, most):
        add([draw.choice(space) for space in spaces])
    return list(chosen.values())


def _corners(space: Sequence[Point]) -> list[Point]:
    """The first and the last point by every parameter's order, forwards and backwards."""
    names = list(space[0])
    orders = [names[place:] + names[:place] for place in range(len(names))]
    found = [pick(space, key=lambda point: [point[name] for name in order]) for order in orders for pick in (min, max)]
    return list({json.dumps(point): point for point in found}.values())


def candidates(cell: Cell, registry: Registry) -> list[Candidate]:
    """Every recorded point of a cell; none of methods that decide by the picture: thresholds are a model's own."""
    known = [one for one in registry.suiting(cell.pipe) if not one.deciding]
    return [Candidate(cell, one.name, params) for one in known for params in points(cell, one)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What was recorded so far; a line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def record_quality(cell: Cell, folder: Path, device: str, shard: int, shards: int) -> None:
    """LPIPS of each sample of each point, a line per point."""
    import torch

    from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct, accelerate
    from pytest_diffaccel.measure.metrics.lpips import lpips_distances
    from pytest_diffaccel.measure.prompts import default_prompts, select
    from pytest_diffaccel.models.loading import load_pipeline
    from pytest_diffaccel.models.registry import ModelSource

    torch.backends.cudnn.allow_tf32 = False
    spec = ModelSource.from_option("embedded").spec(cell.pipe)
    pipeline = load_pipeline(cell.pipe, scheduler=cell.scheduler, device=device, dtype="float32")
    samples = select(default_prompts(spec), NUM_SAMPLES, 0, "search")
    prompts, seeds = [prompt for prompt, _ in samples], [seed for _, seed in samples]

    def images(params: Params) -> list[Any]:
        with accelerate(pipeline, params, steps=cell.steps, **spec.call_options) as generate:
            return generate(prompts, seeds)

    path = folder / f"quality-{cell.pipe}-{shard}of{shards}.jsonl"
    done = {row["key"] for row in rows_of(path)}
    todo = [one for one in candidates(cell, default_registry())[shard::shards] if one.key not in done]
    references = images({})
    with path.open("a", encoding="utf-8") as out:
        for count, one in enumerate(todo, 1):
            try:
                scores = lpips_distances(images(one.params), references, device)
            except MethodDidNotAct:
                # As in a search: where one method leaves another nothing to do, the point is not one of both.
                scores = []
            row = {"key": one.key, "lpips": [round(value, 6) for value in scores]}
            print(json.dumps(row), file=out, flush=True)
            if count % 20 == 0:
                print(f"{cell} quality {count}/{len(todo)}", flush=True)


def record_times(cell: Cell, folder: Path, shard: int, shards: int) -> None:
    """Some points, and the baseline against itself, in many blocks; then every point in one."""
    every = candidates(cell, default_registry())
    deep = [Candidate(cell, "", {}), *random.Random(_SEED).sample(every, _DEEP_POINTS - 1)]
    # Shuffled: drift over an hour must not look like a difference between accelerators.
    random.Random(_SEED).shuffle(every)
    for kind, subjects, blocks in (("blocks", deep, _DEEP_BLOCKS), ("times", every, 1)):
        path = folder / f"{kind}-{cell.pipe}-{shard}of{shards}.jsonl"
        _record_blocks(cell, subjects[shard::shards], blocks, path)


def _record_blocks(cell: Cell, subjects: Sequence[Candidate], blocks: int, path: Path) -> None:
    from pytest_diffaccel.accelerators.acceleration import Generate, accelerate
    from pytest_diffaccel.measure.blocks import TimedRun, run_blocks
    from pytest_diffaccel.measure.clock import timed
    from pytest_diffaccel.measure.disturbance import HostWatch
    from pytest_diffaccel.measure.measurement import RunTiming
    from pytest_diffaccel.measure.prompts import default_prompts, select
    from pytest_diffaccel.measure.threads import use_one_thread
    from pytest_diffaccel.models.loading import load_pipeline
    from pytest_diffaccel.models.registry import ModelSource

    use_one_thread()
    spec = ModelSource.from_option("embedded").spec(cell.pipe)
    pipeline = load_pipeline(cell.pipe, scheduler=cell.scheduler, device="cpu")
    samples = select(default_prompts(spec), TIMED_BATCH[cell.pipe], 0, "search")

    def run(generate: Generate) -> TimedRun:
        def one(_index: int) -> RunTiming:
            return timed(generate, [prompt for prompt, _ in samples], [seed for _, seed in samples])[1]

        return one

    done = {row["key"] for row in rows_of(path)}
    todo = [one for one in subjects if one.key not in done]
    with path.open("a", encoding="utf-8") as out:
        for start in range(0, len(todo), _ABREAST):
            part = todo[start : start + _ABREAST]
            with ExitStack() as stack:
                options = {"steps": cell.steps, **spec.call_options}
                baseline, *generators = [
                    stack.enter_context(accelerate(pipeline, params, **options))
                    for params in [{}, *(one.params for one in part)]
                ]
                if blocks > 1 or start == 0:
                    for generate in (baseline, *generators):
                        run(generate)(0)
                runs = [run(one) for one in generators]
                rows = list(run_blocks(run(baseline), runs, blocks, seed=str(start), watch=HostWatch(threads=1)))
            for one, own in zip(part, zip(*rows, strict=True), strict=True):
                measured = [
                    {
                        "baseline": _timing(block.baseline),
                        "run": _timing(block.runs[0]),
                        "disturbance": block.disturbance,
                        "started_at": round(block.started_at, 3),
                    }
                    for block in own
                ]
                print(json.dumps({"key": one.key, "blocks": measured}), file=out, flush=True)
            print(f"{cell} times {start + len(part)}/{len(todo)}", flush=True)


def _timing(run: Any) -> dict[str, Any]:
    return {"total_s": round(run.total_s, 6), "step_s": [round(value, 6) for value in run.step_s]}


def pack(folder: Path, output: Path) -> None:
    """Join what was recorded into two Parquet files, points in the recorder's order."""
    pa, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    output.mkdir(exist_ok=True)
    losses: dict[_Name, list[float]] = {}
    for name, kind in (("exhaustive", "times"), ("blocks", "blocks")):
        path = output / f"{name}.parquet"
        packed = {_name(row): row for row in parquet.read_table(path).to_pylist()} if path.exists() else {}
        losses |= {name: row["lpips"] for name, row in packed.items() if name not in losses}
        table = pa.Table.from_pylist(list(_joined(folder, kind, packed, losses)))
        parquet.write_table(table, path, compression="zstd", compression_level=19)
        print(f"{output / name}.parquet: {table.num_rows} rows")


def _name(row: Mapping[str, Any]) -> _Name:
    return row["pipe"], row["accelerator"], row["params"]


def _joined(
    folder: Path, kind: str, packed: Mapping[_Name, Mapping[str, Any]], losses: Mapping[_Name, list[float]]
) -> Iterator[Mapping[str, Any]]:
    """What the folder holds; what it does not, as it was packed before."""
    for cell in CELLS.values():
        quality = {row["key"]: row for path in folder.glob(f"quality-{cell.pipe}-*.jsonl") for row in rows_of(path)}
        times = {row["key"]: row for path in folder.glob(f"{kind}-{cell.pipe}-*.jsonl") for row in rows_of(path)}
        alone = [Candidate(cell, "", {})] if kind == "blocks" else []
        for one in [*alone, *candidates(cell, default_registry())]:
            row = {
                "pipe": cell.pipe,
                "scheduler": cell.scheduler,
                "steps": cell.steps,
                "accelerator": one.accelerator,
                "params": json.dumps(one.params),
            }
            name = _name(row)
            lpips = quality.get(one.key, {}).get("lpips", losses.get(name)) if one.params else [0.0] * NUM_SAMPLES
            blocks = times.get(one.key, {}).get("blocks", packed[name]["blocks"] if name in packed else [])
            if lpips is not None and (blocks or kind == "times"):
                yield {**row, "lpips": lpips, "blocks": blocks}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["quality", "times", "pack"])
    parser.add_argument("--pipe", choices=list(CELLS), action="append", help="default: all three")
    parser.add_argument("--folder", type=Path, default=Path(".diffaccel/exhaustive"), help="working folder")
    parser.add_argument("--device", default="cpu", help="for quality: cpu or cuda")
    parser.add_argument("--shard", default="0/1", help="this process's share, as 0/4")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.step == "pack":
        pack(arguments.folder, DATA)
        return
    for pipe in arguments.pipe or CELLS:
        shard, shards = (int(part) for part in arguments.shard.split("/"))
        if arguments.step == "times":
            record_times(CELLS[pipe], arguments.folder, shard, shards)
        else:
            record_quality(CELLS[pipe], arguments.folder, arguments.device, shard, shards)


if __name__ == "__main__":
    main()
