"""The golden database of a GPU from what ``record_gpu`` recorded there: ``golden/nvidia-h200.search_params.json``.

- ``python -m benchmarks.gpu_golden plan FILE`` writes the winners to verify, for ``record_gpu winners --candidates``;
- ``python -m benchmarks.gpu_golden golden`` writes entries of all 1134 keys and of FLUX.1's TaylorSeer and MagCache,
  but those that are undecided: speed-ups of verified winners as measured, the others as the cost model predicts them;
  losses of the embedded pipelines, each entry says of which cell;
- ``python -m benchmarks.gpu_golden table`` compares prediction and measurement of every verified winner, and
  ``python -m benchmarks.gpu_golden best`` shows the best speed-ups within the quality bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu_records import (
    BUSY,
    DATA,
    REGISTRY,
    WALL,
    GpuRecords,
    accelerators_of,
    all_cells,
    options,
    scored,
)
from benchmarks.output import parser, show
from benchmarks.record_gpu import BATCHES
from pytest_diffaccel.matrix import PIPES, TARGETS, Candidate, Cell
from pytest_diffaccel.measure.busy_clock import LAUNCH_BOUND_SHARE
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.measure.statistics import loss_interval
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import merge, read_golden
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.search.decide.plan import Plan
from pytest_diffaccel.search.decide.racing import space
from pytest_diffaccel.search.decide.select import choose
from pytest_diffaccel.search.predict.cost_model import CostModel

GOLDEN = Path("golden/nvidia-h200.search_params.json")
MAX_LOSS = 0.25

# Targets of interest, and how many winners per cell are verified, by steps: they fit into ten minutes per pipe.
_VERIFIED_TARGETS = (2.0, 1.5, 3.0)
_VERIFIED_PER_CELL = {
    20: {"SD1.5": 8, "SD2.1": 8, "SDXL": 4},
    25: dict.fromkeys(PIPES, 2),
    28: {"FLUX.1": 4},
    50: dict.fromkeys(PIPES, 2) | {"FLUX.1": 4},
}
_ORDER = (
    *("DeepCache", "T-Gate", "DeepCache and T-Gate", "DeepCache and ToMe", "DeepCache, T-Gate, and ToMe", "ToMe"),
    *("MagCache", "TaylorSeer"),
)


class Chooser:
    """Chooses winners from recorded losses and speed-ups, measured ones where there are any."""

    def __init__(self, records: GpuRecords) -> None:
        self.records = records
        self.measured = records.measured()
        self._models: dict[tuple[str, str], CostModel] = {}

    def predicted(self, pipe: str, clock: str, candidates: list[Candidate]) -> list[Interval]:
        """Speed-ups by the cost model of the short runs."""
        return self._model(pipe, clock).speedups(candidates)

    def _model(self, pipe: str, clock: str) -> CostModel:
        if (pipe, clock) not in self._models:
            self._models[pipe, clock] = self.records.model(pipe, clock)
        return self._models[pipe, clock]

    def _open_targets(self, cell: Cell, accelerator: str) -> set[float]:
        """Targets that points without recorded losses may reach with a loss that is allowed, as a search sees it."""
        scored_ones = [point for name in accelerators_of(cell.pipe) for point in scored(cell, name)]
        evaluated = {point.candidate: point.losses for point in scored_ones}
        (known,) = REGISTRY.select([accelerator])
        samples = min(len(losses) for losses in evaluated.values())
        plan = Plan(REGISTRY, known, cell, self._model(cell.pipe, BUSY), evaluated, MAX_LOSS, samples)
        return plan.targets_open_to([Candidate(cell, accelerator, params) for params in space(plan, lambda _: True)])

    def entries(self, cell: Cell, accelerator: str) -> Iterator[tuple[GoldenKey, GoldenEntry]]:
        """A group's golden entries, of the targets that are decided."""
        points = scored(cell, accelerator)
        by_candidate = {point.candidate: point for point in points}
        candidates = list(by_candidate)
        predicted = self.predicted(cell.pipe, BUSY, candidates)
        known = [
            _about(self.measured[one].device.value, speedup) if one in self.measured else speedup
            for one, speedup in zip(candidates, predicted, strict=True)
        ]
        open_targets = self._open_targets(cell, accelerator)
        for target in TARGETS:
            choice = choose(options(points, known), target, MAX_LOSS)
            if choice.option is None:
                raise ValueError(f"{cell} {accelerator}: no losses are recorded")
            if choice.reason == "undecided" or (choice.reason and target in open_targets):
                continue
            winner = choice.option.candidate
            device, timed = choice.option.speedup, self.measured.get(winner)
            wall = timed.wall if timed else self._wall(winner)
            whole = timed.whole if timed else wall
            loss = loss_interval(choice.option.losses)
            environment = self.records.environment(winner)
            yield (
                GoldenKey(cell, accelerator, target),
                GoldenEntry(
                    status="unattainable" if choice.reason else "met",
                    reason=choice.reason,
                    params=winner.params,
                    speedup=wall.value,
                    speedup_ci95=(wall.low, wall.high),
                    wall_speedup=whole.value,
                    wall_speedup_ci95=(whole.low, whole.high),
                    device_speedup=device.value,
                    device_speedup_ci95=(device.low, device.high),
                    decided_by="device",
                    lpips=loss.value,
                    lpips_ci95=(loss.low, loss.high),
                    num_samples=len(choice.option.losses),
                    batch_size=environment.batch_size,
                    environment=environment.id,
                    basis="measured" if timed else "predicted",
                    quality_from=by_candidate[winner].quality_from,
                ),
            )

    def _wall(self, candidate: Candidate) -> Interval:
        return self.predicted(candidate.cell.pipe, WALL, [candidate])[0]


def _about(value: float, predicted: Interval) -> Interval:
    """A measured speed-up with the cost model's interval: the spread of one block is known from all the others only."""
    ratio = value / predicted.value
    return Interval(value, predicted.low * ratio, predicted.high * ratio)


def plan(chooser: Chooser) -> list[Candidate]:
    """The winners to verify, pipe by pipe, most wanted first within a cell."""
    chosen: list[Candidate] = []
    for cell in all_cells():
        names = [name for name in _ORDER if name in accelerators_of(cell.pipe)]
        entries = {(key.accelerator, key.target): entry for name in names for key, entry in chooser.entries(cell, name)}
        wanted = [(name, target) for target in _VERIFIED_TARGETS for name in names]
        winners = [
            Candidate(cell, name, entries[name, target].params)
            for name, target in wanted
            if (name, target) in entries and entries[name, target].status == "met"
        ]
        chosen += list(dict.fromkeys(winners))[: _VERIFIED_PER_CELL[cell.steps][cell.pipe]]
    return chosen


def comparison(chooser: Chooser) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per verified winner: predicted and measured speed-ups."""
    rows, errors = [], {BUSY: [], WALL: []}  # type: tuple[list[dict[str, Any]], dict[str, list[float]]]
    for one, timed in chooser.measured.items():
        guess = {clock: chooser.predicted(one.cell.pipe, clock, [one])[0].value for clock in (BUSY, WALL)}
        errors[BUSY].append(abs(guess[BUSY] / timed.device.value - 1))
        errors[WALL].append(abs(guess[WALL] / timed.whole.value - 1))
        share = chooser.records.busy_share(one)
        rows.append(
            {
                "cell": str(one.cell),
                "accelerator": one.accelerator,
                "device": timed.device.value,
                "device_predicted": guess[BUSY],
                "wall": timed.whole.value,
                "wall_predicted": guess[WALL],
                "busy_share": share,
                "baseline_busy_share": chooser.records.busy_share(one, baseline=True),
                "launch_bound": share < LAUNCH_BOUND_SHARE,
            }
        )
    return rows, {
        "verified": len(rows),
        "median_error_device": median(errors[BUSY]),
        "median_error_wall": median(errors[WALL]),
    }


def best(chooser: Chooser, entries: Mapping[GoldenKey, GoldenEntry]) -> list[dict[str, Any]]:
    """Per pipe and accelerator: the highest device speed-up that was verified, and the highest of the golden file.

    Both within the quality bound: only winners of a target that is met are verified.
    """
    rows = []
    for pipe in BATCHES:
        for accelerator in accelerators_of(pipe):
            row: dict[str, Any] = {"pipe": pipe, "accelerator": accelerator}
            verified = [
                (timed.device.value, timed.whole.value, str(one.cell))
                for one, timed in chooser.measured.items()
                if (one.cell.pipe, one.accelerator) == (pipe, accelerator)
            ]
            names: tuple[str, ...] = ("verified_device", "verified_wall", "verified_cell")
            row |= dict(zip(names, max(verified, default=("none", "none", "")), strict=True))
            golden = [
                (
                    entry.device_speedup or 0.0,
                    entry.wall_speedup or 0.0,
                    f"{key.cell.scheduler} {key.cell.steps}",
                    entry.basis,
                )
                for key, entry in entries.items()
                if (key.cell.pipe, key.accelerator) == (pipe, accelerator) and (entry.lpips or 0.0) <= MAX_LOSS
            ]
            names = ("golden_device", "golden_wall", "golden_cell", "golden_basis")
            row |= dict(zip(names, max(golden, default=("none", "none", "", "")), strict=True))
            rows.append(row)
    return rows


def main() -> None:
    """Run one step."""
    made = parser(__doc__ or "")
    made.add_argument("step", choices=["plan", "golden", "table", "best"])
    made.add_argument("file", type=Path, nargs="?", help="for plan: what to write")
    made.add_argument("--records", type=Path, default=DATA, help="what record_gpu recorded")
    made.add_argument("--golden", type=Path, default=GOLDEN, help="golden file")
    arguments = made.parse_args()
    chooser = Chooser(GpuRecords.from_file(arguments.records))
    if arguments.step == "best":
        rows = best(chooser, read_golden(arguments.golden))
        show("best within the quality bound", rows, {}, as_json=arguments.json)
    elif arguments.step == "plan":
        if arguments.file is None:
            made.error("plan needs a file to write")
        lines = [
            {"pipe": one.cell.pipe, "scheduler": one.cell.scheduler, "steps": one.cell.steps, "params": one.params}
            for one in plan(chooser)
        ]
        arguments.file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        print(f"{arguments.file}: {len(lines)} candidates")
    elif arguments.step == "table":
        rows, summary = comparison(chooser)
        show("verified winners: predicted against measured", rows, summary, as_json=arguments.json)
    else:
        found = dict(
            pair for cell in all_cells() for name in accelerators_of(cell.pipe) for pair in chooser.entries(cell, name)
        )
        # Anew, not merged: that keeps older figures where they agree with these.
        arguments.golden.unlink(missing_ok=True)
        merge(arguments.golden, found, update=False, environments=chooser.records.environments)
        print(f"{arguments.golden}: {len(found)} entries")


if __name__ == "__main__":
    main()
