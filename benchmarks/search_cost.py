"""A replay of decisions: what a search costs in denoiser time and how right it is, on recorded tables, beside others.

Run ``python -m benchmarks.search_cost``; no pipeline is needed. Every method sees the same candidates; its cost is
denoiser time, as a share of the exhaustive search's. A target is right when the method names the exhaustive search's
winner or one within 2% of its LPIPS on all samples; regret is how much more the named one loses. Ours and the
exhaustive search have to find speed-ups out by timing, at what the recorded blocks cost; the others are told all of
them for nothing, and each is given what it needs to be right as often as ours, if it ever is.
"""

from __future__ import annotations

import math
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from benchmarks import charts
from benchmarks.output import needed, parser, show
from benchmarks.recorded import read
from benchmarks.search_replay import FIRST, REGISTRY, Replay, Table, judge, named
from pytest_diffaccel.matrix import Candidate

# Other methods are looked at after every fiftieth of their candidates; Optuna's may ask for so many times as many.
_PARTS, _TRIALS = 50, 3
#: A method's orders of evaluation: by seed, then by cell.
Orders: TypeAlias = Sequence[Sequence[Sequence[Candidate]]]


@dataclass(frozen=True)
class Run:
    """What a method did in all cells, with one seed.

    Attributes:
        time: denoiser time, in baseline generations of one sample.
        images: generated.
        calls: that drew them; 0 where nobody counted.
        right: share of targets that are right.
        regrets: of each target that has a winner.
    """

    time: float
    images: int
    calls: int
    right: float
    regrets: list[float]

    @classmethod
    def of_all(cls, parts: Sequence[Run]) -> Run:
        """The runs in one cell each as one."""
        return cls(
            sum(part.time for part in parts),
            sum(part.images for part in parts),
            sum(part.calls for part in parts),
            float(np.mean([part.right for part in parts])),
            [regret for part in parts for regret in part.regrets],
        )


def beginning(table: Table, order: Sequence[Candidate], part: int) -> Run:
    """A full evaluation of so many fiftieths of ``order``."""
    evaluated = order[: max(1, round(len(order) * part / _PARTS))]
    time = sum(table.samples / table.speedups[one].value for one in evaluated)
    return Run(time, len(evaluated) * table.samples, 0, *judge(table, named(table, evaluated)))


def cost_to_match(table: Table, order: Sequence[Candidate], share: float) -> Run:
    """The shortest beginning of ``order`` that is right as often as ``share``; all of it where none is."""
    parts = range(1, _PARTS + 1)
    place = bisect_left(parts, share, key=lambda part: beginning(table, order, part).right)
    return beginning(table, order, parts[min(place, len(parts) - 1)])


def random_order(table: Table, seed: int) -> list[Candidate]:
    """All candidates, shuffled."""
    order = list(table.points)
    random.Random(seed).shuffle(order)
    return order


def optuna_order(name: str) -> Callable[[Table, int], list[Candidate]]:
    """Candidates in the order in which an Optuna sampler first asks for them, all groups taking turns."""

    def order(table: Table, seed: int) -> list[Candidate]:
        optuna = needed("optuna")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        queues = [_asked(optuna, name, table, table.group(one), seed) for one in REGISTRY.suiting(table.cell.pipe)]
        longest = max(map(len, queues))
        return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]

    return order


def _asked(optuna: Any, name: str, table: Table, group: Sequence[Candidate], seed: int) -> list[Candidate]:
    rows, columns = _product(len(group))
    sampler = {
        "GridSampler": lambda: optuna.samplers.GridSampler({"row": rows, "column": columns}, seed=seed),
        "TPESampler": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
        "NSGAIISampler": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    }[name]()
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    places = np.array([_coordinates(one) for one in group])
    low, high = places.min(axis=0), places.max(axis=0)
    asked: dict[Candidate, None] = {}

    def objective(trial: Any) -> tuple[float, float]:
        if name == "GridSampler":
            row, column = trial.suggest_int("row", 0, rows[-1]), trial.suggest_int("column", 0, columns[-1])
            found = group[row * len(columns) + column]
        else:
            # The table is not a full product: the nearest of its points stands for what is asked for.
            wanted = np.array([trial.suggest_float(str(axis), low[axis], high[axis]) for axis in range(len(low))])
            scale = np.where(high > low, high - low, 1.0)
            found = group[int(np.argmin((((places - wanted) / scale) ** 2).sum(axis=1)))]
        asked[found] = None
        return table.speedups[found].value, table.loss(found)

    # What is asked for again costs nothing, as it is known; so the others get more trials than there are candidates.
    study.optimize(objective, n_trials=len(group) * (1 if name == "GridSampler" else _TRIALS))
    return list(asked)


def _product(count: int) -> tuple[range, range]:
    """Two short ranges with ``count`` pairs: Optuna compares all values of a grid anew for each trial before."""
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return range(rows), range(count // rows)


def _coordinates(candidate: Candidate) -> list[float]:
    return [float(value) for point in candidate.params.values() for value in point.values()]


OTHERS: dict[str, Callable[[Table, int], list[Candidate]]] = {
    "random": random_order,
    **{f"Optuna {name}": optuna_order(name) for name in ("GridSampler", "TPESampler", "NSGAIISampler")},
}


@cache
def _tables() -> list[Table]:
    """The recorded cells, read once per process."""
    recorded = {cell: [point for point in points if point.blocks] for cell, points in read("exhaustive").items()}
    return [Table(cell, points) for cell, points in recorded.items() if points]


def our_run(seed: int, first: int = FIRST) -> Run:
    """Our search of all cells, with so many samples in a first evaluation."""
    parts = []
    for table in _tables():
        order = list(range(table.samples))
        random.Random(seed).shuffle(order)
        replay = Replay(table, order, first=first)
        right, regrets = judge(table, replay.search())
        parts.append(Run(replay.spent, replay.images, replay.calls, right, regrets))
    return Run.of_all(parts)


@cache
def _exhaustive_time() -> float:
    """Denoiser time of the exhaustive search of all cells."""
    return sum(table.exhaustive_time for table in _tables())


def orders_of(name: str, seed: int) -> list[list[Candidate]]:
    """The order in which another method evaluates each cell's candidates."""
    return [OTHERS[name](table, seed) for table in _tables()]


def run_to_match(orders: Sequence[Sequence[Candidate]], share: float) -> Run:
    """What another method with one seed needs to be right as often as ``share`` in each cell."""
    return Run.of_all([cost_to_match(table, order, share) for table, order in zip(_tables(), orders, strict=True)])


def compare(ours: Sequence[Run], others: Mapping[str, Sequence[Run]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per method, and the figures to reach.

    Args:
        ours: our search's runs, one per seed.
        others: of each other method, as :func:`run_to_match` tells them.
    """
    images = sum(table.samples * len(table.points) for table in _tables())
    rows = [
        _row("exhaustive", [Run(_exhaustive_time(), images, 0, 1.0, [0.0])]),
        _row("ours", ours),
        *(_row(name, runs) for name, runs in others.items()),
    ]
    share = rows[1]["targets_right"]
    optuna_rows = [row for row in rows if row["method"].startswith("Optuna")]
    matching = [row for row in optuna_rows if row["targets_right"] >= share] or optuna_rows
    best = min(matching, key=lambda row: (-min(row["targets_right"], share), row["time_vs_exhaustive"]))
    return rows, {
        "targets_right": share,
        "cost_vs_exhaustive": rows[1]["time_vs_exhaustive"],
        "cost_vs_best_optuna": rows[1]["time_vs_exhaustive"] / best["time_vs_exhaustive"],
        "best_optuna": best["method"],
        "median_regret": rows[1]["median_regret"],
        "mean_regret": rows[1]["mean_regret"],
    }


def _row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "method": name,
        "seeds": len(runs),
        "images": round(median(run.images for run in runs)),
        "calls": round(median(run.calls for run in runs)) or None,
        "time_vs_exhaustive": median(run.time for run in runs) / _exhaustive_time(),
        "targets_right": median(run.right for run in runs),
        "median_regret": median(median(run.regrets) for run in runs),
        "mean_regret": median(float(np.mean(run.regrets)) for run in runs),
    }


def draw(path: Path, ours: Sequence[Run], orders: Mapping[str, Orders]) -> None:
    """Targets right and mean regret against the time spent: ours a dot per seed, the others a line."""
    lines = {}
    for name, (first, *_) in orders.items():
        runs = [
            Run.of_all([beginning(table, order, part) for table, order in zip(_tables(), first, strict=True)])
            for part in range(1, _PARTS + 1)
        ]
        lines[name] = [_dot(run) for run in runs]
    charts.search_cost(path, [_dot(run) for run in ours], lines)


def _dot(run: Run) -> charts.Spent:
    return charts.Spent(run.time / _exhaustive_time(), run.right, float(np.mean(run.regrets)))


def main() -> None:
    """Replay and print the comparison."""
    made = parser(__doc__ or "")
    made.add_argument("--seeds", type=int, default=20, help="seeds of ours and of random search (default: 20)")
    made.add_argument(
        "--optuna-seeds", type=int, default=1, help="seeds of each Optuna sampler (default: 1; 20 take ten minutes)"
    )
    made.add_argument(
        "--first", type=int, default=FIRST, metavar="N", help=f"samples of our first evaluations (default: {FIRST})"
    )
    made.add_argument("--plot", type=Path, metavar="FILE", help="also draw an SVG file")
    arguments = made.parse_args()
    counts = {name: arguments.seeds if name == "random" else arguments.optuna_seeds for name in OTHERS}
    # One thread per process: the matrices are small, and all cores have a process anyway.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        # The longest jobs first, so that no core waits for one at the end.
        asked = {name: [pool.submit(orders_of, name, seed) for seed in range(counts[name])] for name in OTHERS}
        found = [pool.submit(our_run, seed, arguments.first) for seed in range(arguments.seeds)]
        ours = [run.result() for run in found]
        orders = {name: [one.result() for one in own] for name, own in asked.items()}
        share = median(run.right for run in ours)
        matching = {name: [pool.submit(run_to_match, one, share) for one in own] for name, own in orders.items()}
        others = {name: [run.result() for run in own] for name, own in matching.items()}
    rows, summary = compare(ours, others)
    show("search cost, medians over seeds", rows, summary, as_json=arguments.json)
    if arguments.plot:
        draw(arguments.plot, ours, orders)


if __name__ == "__main__":
    main()
