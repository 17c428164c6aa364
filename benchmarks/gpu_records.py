"""What ``record_gpu`` recorded, and what the cost model and the choice of winners make of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.record_losses import flux_cells
from benchmarks.recorded import read
from pytest_diffaccel.accelerators.base import InvalidParams
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import PIPES, Candidate, Cell, Params
from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.step_kinds import step_kind_speedup
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.search.decide.select import Option
from pytest_diffaccel.search.predict.cost_model import CostModel

DATA = Path(__file__).resolve().parent / "data" / "nvidia-h200.jsonl"
REGISTRY = default_registry()
#: Clocks that every candidate was timed with.
WALL, BUSY = "wall", "busy"
# A group of which less than this share was scored takes its losses from another scheduler.
_SCORED_ENOUGH = 0.9

Blocks = dict[Candidate, list[Block]]


@dataclass(frozen=True)
class Timed:
    """Speed-ups of a candidate whose whole generation was timed both ways.

    Attributes:
        device: step-kind estimate by the GPU's own time.
        wall: the same by the wall clock.
        whole: of whole runs by the wall clock.
    """

    device: Interval
    wall: Interval
    whole: Interval


@dataclass
class GpuRecords:
    """All that was recorded on one GPU.

    Attributes:
        environments: by id.
        recorded_in: the id of the environment of each candidate that was timed.
        kinds: blocks of the short runs, by clock.
        winners: blocks of whole generations, by clock.
        peak_memory_mb: of a candidate's first generation.
    """

    environments: dict[str, Environment] = field(default_factory=dict)
    recorded_in: dict[Candidate, str] = field(default_factory=dict)
    kinds: dict[str, Blocks] = field(default_factory=lambda: {WALL: defaultdict(list), BUSY: defaultdict(list)})
    winners: dict[str, Blocks] = field(default_factory=lambda: {WALL: defaultdict(list), BUSY: defaultdict(list)})
    peak_memory_mb: dict[Candidate, float] = field(default_factory=dict)

    @classmethod
    def from_file(cls, path: Path = DATA) -> GpuRecords:
        """Read a recorder's output."""
        found = cls()
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["type"] == "environment":
                environment = Environment.from_json(json.dumps(row["environment"]))
                found.environments[environment.id] = environment
            elif row["type"] == "block":
                blocks = found.kinds if row["step"] == "kinds" else found.winners
                candidate = _candidate(row)
                found.recorded_in[candidate] = row["environment"]
                blocks[row["clock"]][candidate].append(_block(candidate, row))
            elif row["type"] == "counted":
                found.peak_memory_mb[_candidate(row)] = row["peak_memory_mb"]
        return found

    def environment(self, candidate: Candidate) -> Environment:
        """In which it was timed, else that of its pipe's short runs."""
        short_runs = (run for run in self.kinds[BUSY] if run.cell.pipe == candidate.cell.pipe)
        timed = candidate if candidate in self.recorded_in else next(short_runs)
        return self.environments[self.recorded_in[timed]]

    def model(self, pipe: str, clock: str) -> CostModel:
        """The cost model of a pipe, from the short runs alone."""
        return CostModel.fit(REGISTRY, [pair for pair in self.kinds[clock].items() if pair[0].cell.pipe == pipe])

    def measured(self) -> dict[Candidate, Timed]:
        """Speed-ups of every candidate whose whole generation was timed both ways."""
        busy, wall = self.winners[BUSY], self.winners[WALL]
        return {
            one: Timed(step_kind_speedup(busy[one]), step_kind_speedup(wall[one]), wall_speedup(wall[one]))
            for one in busy
            if one in wall
        }

    def busy_share(self, candidate: Candidate, *, baseline: bool = False) -> float:
        """Device time of a verified candidate's generation (or of its baseline's) as a share of its wall time."""

        def least(clock: str) -> float:
            blocks = self.winners[clock][candidate]
            return min((block.baseline if baseline else block.runs[0]).total_s for block in blocks)

        return least(BUSY) / least(WALL)


def _candidate(row: Mapping[str, Any]) -> Candidate:
    return Candidate(Cell(row["pipe"], row["scheduler"], row["steps"]), row["accelerator"], row["params"])


def _block(candidate: Candidate, row: Mapping[str, Any]) -> Block:
    steps = candidate.cell.steps
    kinds = REGISTRY.for_params(candidate.params).kinds(candidate.params, steps)
    plain = REGISTRY.for_params({}).kinds({}, steps)
    baseline = RunTiming(row["baseline"]["total_s"], tuple(row["baseline"]["step_s"]), plain)
    run = RunTiming(row["run"]["total_s"], tuple(row["run"]["step_s"]), kinds)
    return Block(baseline, (run,), row["disturbance"], row["started_at"])


@dataclass(frozen=True)
class Scored:
    """A candidate with the losses that stand for its own.

    Attributes:
        candidate: what it is.
        losses: LPIPS of each sample.
        quality_from: whose they are.
    """

    candidate: Candidate
    losses: tuple[float, ...]
    quality_from: str


def scored(cell: Cell, accelerator: str) -> list[Scored]:
    """Candidates of a group, with the embedded pipelines' losses of the nearest recorded cell.

    That cell has the same pipe, and the same scheduler where that was scored. Other numbers of steps get its points
    with gate and warm-up scaled in proportion, and its losses as they are: their order is what counts.
    """
    source = _source(cell, accelerator)
    label = f"embedded {source}" + (f", gates scaled to {cell.steps} steps" if source.steps != cell.steps else "")
    distinct: dict[tuple[str, ...], Scored] = {}
    for params, losses in _tables()[source][accelerator]:
        scaled = _scaled(params, source.steps, cell.steps)
        kind = REGISTRY.for_params(scaled)
        try:
            kind.check(scaled, cell.steps)
        except InvalidParams:
            continue
        distinct.setdefault(kind.kinds(scaled, cell.steps), Scored(Candidate(cell, accelerator, scaled), losses, label))
    return list(distinct.values())


def options(records: Sequence[Scored], speedups: Sequence[Interval]) -> list[Option]:
    """What the choice of winners chooses from."""
    return [Option(one.candidate, speedup, one.losses) for one, speedup in zip(records, speedups, strict=True)]


@cache
def _tables() -> dict[Cell, dict[str, list[tuple[Params, tuple[float, ...]]]]]:
    tables: dict[Cell, dict[str, list[tuple[Params, tuple[float, ...]]]]] = {}
    for name in ("exhaustive", "losses"):
        for cell, points in read(name).items():
            table = tables.setdefault(cell, defaultdict(list))
            for point in points:
                if point.losses:
                    table[point.candidate.accelerator].append((point.candidate.params, point.losses))
    return tables


def _source(cell: Cell, accelerator: str) -> Cell:
    of_pipe = {one: len(table[accelerator]) for one, table in _tables().items() if one.pipe == cell.pipe}
    enough = _SCORED_ENOUGH * max(of_pipe.values())
    own = [one for one, count in of_pipe.items() if one.scheduler == cell.scheduler and count >= enough]
    # Without one of its own: the first, which was recorded exhaustively.
    return min(own, key=lambda one: abs(one.steps - cell.steps), default=next(iter(of_pipe)))


def _scaled(params: Params, steps: int, wanted: int) -> Params:
    if "T-Gate" not in params or steps == wanted:
        return params
    point = params["T-Gate"]
    gate = max(1, round(point["gate_step"] * wanted / steps))
    warm_up = min(gate - 1, round(point["warm_up"] * wanted / steps))
    return {**params, "T-Gate": {**point, "gate_step": gate, "warm_up": warm_up}}


def all_cells() -> Iterator[Cell]:
    """The cells of the golden database."""
    from pytest_diffaccel.matrix import SCHEDULERS, STEPS, cells

    yield from cells(PIPES, SCHEDULERS, STEPS)
    yield from flux_cells()


def accelerators_of(pipe: str) -> list[str]:
    """Those whose parameters alone say how fast they are; with the others it is the pictures, which are random here."""
    return [one.name for one in REGISTRY.suiting(pipe) if not one.deciding]
