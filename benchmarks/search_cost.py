"""What a search costs and how right it is: ours, an exhaustive one, random ones and Optuna's, on recorded tables.

Run ``python -m benchmarks.search_cost``; no pipeline is needed. Every method sees the same candidates; its cost is
denoiser time, as a share of the exhaustive search's. A target is right when the method names the exhaustive search's
winner or one within 2% of its LPIPS on all samples; regret is how much more the named one loses. The others are told
all speed-ups for nothing, and ours has to find them out; each is given what it needs to be right as often as ours, if
it ever is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np

from benchmarks.output import parser, show
from benchmarks.recorded import Point, read
from pytest_diffaccel.accelerators.composition import Accelerator, default_registry
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.search.cost_model import CostModel
from pytest_diffaccel.search.plan import Plan
from pytest_diffaccel.search.racing import explore, settle
from pytest_diffaccel.search.select import EQUAL_LOSS, Option, choose

REGISTRY = default_registry()
BATCH = 4
MAX_LOSS = 0.25
# Blocks that tell a borderline speed-up, as in pytest_diffaccel.search.group.
_BLOCKS_ENOUGH = 4
#: One group's target: the accelerator and the speed-up.
Goal = tuple[str, float]


class Table:
    """A recorded cell, and the truth that all of its blocks and samples tell."""

    def __init__(self, cell: Cell, points: Sequence[Point]) -> None:
        self.cell = cell
        self.points = {point.candidate: point for point in points if point.losses}
        self.samples = len(next(iter(self.points.values())).losses)
        model = CostModel.fit(REGISTRY, [(one, point.blocks) for one, point in self.points.items()])
        self.speedups: dict[Candidate, Interval] = dict(
            zip(self.points, model.speedups(list(self.points)), strict=True)
        )

    @cached_property
    def winners(self) -> dict[Goal, Candidate | None]:
        """The exhaustive search's; None where no candidate is fast and good enough."""
        return named(self, list(self.points))

    @cached_property
    def exhaustive_time(self) -> float:
        """Denoiser time of all samples of all candidates, in baseline generations of one sample."""
        return sum(self.samples / self.speedups[one].value for one in self.points)

    def loss(self, candidate: Candidate) -> float:
        """Its LPIPS on all samples."""
        return float(np.mean(self.points[candidate].losses))

    def group(self, accelerator: Accelerator) -> list[Candidate]:
        """The group's candidates, its grid first."""
        return [one for one in self.points if one.accelerator == accelerator.name]


def named(table: Table, evaluated: Sequence[Candidate]) -> dict[Goal, Candidate | None]:
    """The winners among candidates evaluated in full, with all speed-ups known."""
    winners: dict[Goal, Candidate | None] = {}
    for accelerator in REGISTRY:
        own = [one for one in evaluated if one.accelerator == accelerator.name]
        options = [Option(one, table.speedups[one], table.points[one].losses) for one in own]
        for target in TARGETS:
            choice = choose(options, target, MAX_LOSS)
            found = choice.option.candidate if choice.option and choice.reason is None else None
            winners[accelerator.name, target] = found
    return winners


class Told(CostModel):
    """A cost model that is told some candidates' speed-ups: those that were timed in many blocks.

    Attributes:
        told: their speed-ups.
    """

    told: Mapping[Candidate, Interval]

    def speedups(self, candidates: Sequence[Candidate]) -> list[Interval]:
        """As told, else as predicted."""
        predicted = super().speedups(candidates)
        return [self.told.get(one, speedup) for one, speedup in zip(candidates, predicted, strict=True)]


@dataclass
class Replay:
    """Our search on a table; a :class:`pytest_diffaccel.search.racing.Track` of one group after the other.

    Attributes:
        table: what is replayed.
        order: the samples' places, shuffled by the seed.
        accelerator: the group that is searched now.
        images: generated so far.
        spent: denoiser time so far, in baseline generations of one sample.
    """

    table: Table
    order: Sequence[int]
    accelerator: Accelerator
    images: int = 0
    spent: float = 0.0
    _seen: dict[Candidate, int] = field(default_factory=dict)
    _timed: set[Candidate] = field(default_factory=set)
    _told: dict[Candidate, Interval] = field(default_factory=dict)
    _costs: Told | None = None

    def plan(self) -> Plan:
        """The group as far as it is known now."""
        evaluated = {
            one: tuple(self.table.points[one].losses[place] for place in self.order[:count])
            for one, count in self._seen.items()
        }
        return Plan(REGISTRY, self.accelerator, self.table.cell, self._model, evaluated, MAX_LOSS, BATCH)

    @property
    def _model(self) -> CostModel:
        if self._costs is None:
            timed = [(one, self.table.points[one].blocks[:1]) for one in self._timed]
            self._costs = Told.fit(REGISTRY, timed)
            self._costs.told = self._told
        return self._costs

    def evaluate(self, candidate: Candidate) -> None:
        """The counted generation; a block with a baseline run where the speed-up is not known well."""
        timed = self.plan().timing_tells(candidate)
        self._seen[candidate] = BATCH
        self._generate(candidate, BATCH)
        if timed:
            self._timed.add(candidate)
            self._costs = None
            self._generate(candidate, BATCH)
            self.images += BATCH
            self.spent += BATCH

    def extend(self, candidate: Candidate, num_samples: int) -> None:
        """More samples."""
        self._generate(candidate, num_samples - self._seen[candidate])
        self._seen[candidate] = num_samples

    def time(self, candidates: Sequence[Candidate]) -> bool:
        """Blocks enough to know the speed-ups: the table's truth, as many blocks would tell it."""
        untold = [one for one in candidates if one not in self._told]
        for candidate in untold:
            self._told[candidate] = self.table.speedups[candidate]
            self._generate(candidate, BATCH * _BLOCKS_ENOUGH)
        if untold:
            self.images += BATCH * _BLOCKS_ENOUGH
            self.spent += BATCH * _BLOCKS_ENOUGH
        return bool(untold)

    def _generate(self, candidate: Candidate, count: int) -> None:
        self.images += count
        self.spent += count / self.table.speedups[candidate].value

    def search(self) -> dict[Goal, Candidate | None]:
        """All groups, as the cases and the winners' cases of a search go about them."""
        winners: dict[Goal, Candidate | None] = {}
        for self.accelerator in REGISTRY:
            group = self.table.group(self.accelerator)
            grid = self.accelerator.grid(self.table.cell, coarse=False)
            for candidate in group:
                if candidate.params in grid and self.plan().verdict(candidate).evaluate:
                    self.evaluate(candidate)
            explore(self, group, len(group))
            settle(self, self.table.samples)
            options = self.plan().options
            for target in TARGETS:
                choice = choose(options, target, MAX_LOSS)
                found = choice.option.candidate if choice.option and choice.reason is None else None
                winners[self.accelerator.name, target] = found
        return winners


def judge(table: Table, winners: dict[Goal, Candidate | None]) -> tuple[float, list[float]]:
    """Share of targets that are right, and the regret of each target that has a winner."""
    right, regrets = [], []
    for goal, best in table.winners.items():
        found = winners[goal]
        if best is None or found is None:
            right.append(best is found)
        else:
            regret = max(0.0, table.loss(found) / max(table.loss(best), 1e-6) - 1)
            fast = table.speedups[found].high >= goal[1]
            right.append(fast and regret <= EQUAL_LOSS)
            regrets.append(regret)
    return float(np.mean(right)), regrets


def prefixes(order: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Ever longer beginnings of an order, in steps of a fiftieth."""
    for part in range(1, 51):
        yield order[: max(1, round(len(order) * part / 50))]


def cost_to_match(table: Table, order: Sequence[Candidate], share: float) -> tuple[float, int, float, list[float]]:
    """Denoiser time, images, share and regrets of a full evaluation in ``order`` once it is right that often."""
    time, right, regrets, count = 0.0, 0.0, [], 0
    for part in prefixes(order):
        time = sum(table.samples / table.speedups[one].value for one in part)
        count = len(part)
        right, regrets = judge(table, named(table, part))
        if right >= share:
            break
    return time, count * table.samples, right, regrets


def random_order(table: Table, seed: int) -> list[Candidate]:
    """All candidates, shuffled."""
    order = list(table.points)
    random.Random(seed).shuffle(order)
    return order


def optuna_order(name: str) -> Callable[[Table, int], list[Candidate]]:
    """Candidates in the order in which an Optuna sampler first asks for them, all groups taking turns."""

    def order(table: Table, seed: int) -> list[Candidate]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        queues = [_asked(optuna, name, table, table.group(one), seed) for one in REGISTRY]
        longest = max(map(len, queues))
        return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]

    return order


def _asked(optuna: Any, name: str, table: Table, group: Sequence[Candidate], seed: int) -> list[Candidate]:
    sampler = {
        "GridSampler": lambda: optuna.samplers.GridSampler({"place": list(range(len(group)))}, seed=seed),
        "TPESampler": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
        "NSGAIISampler": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    }[name]()
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    places = np.array([_coordinates(one) for one in group])
    low, high = places.min(axis=0), places.max(axis=0)
    asked: dict[Candidate, None] = {}

    def objective(trial: Any) -> tuple[float, float]:
        if name == "GridSampler":
            found = group[trial.suggest_categorical("place", list(range(len(group))))]
        else:
            # The table is not a full product: the nearest of its points stands for what is asked for.
            wanted = np.array([trial.suggest_float(str(axis), low[axis], high[axis]) for axis in range(len(low))])
            scale = np.where(high > low, high - low, 1.0)
            found = group[int(np.argmin((((places - wanted) / scale) ** 2).sum(axis=1)))]
        asked[found] = None
        return table.speedups[found].value, table.loss(found)

    study.optimize(objective, n_trials=len(group))
    return list(asked)


def _coordinates(candidate: Candidate) -> list[float]:
    return [float(value) for point in candidate.params.values() for value in point.values()]


def compare(tables: Sequence[Table], seeds: int, optuna_seeds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a method, and the figures to reach."""
    exhaustive = sum(table.exhaustive_time for table in tables)
    ours = [_ours(tables, seed) for seed in range(seeds)]
    rows = [
        {
            "method": "exhaustive",
            "images": sum(table.samples * len(table.points) for table in tables),
            "time_vs_exhaustive": 1.0,
            "targets_right": 1.0,
            "median_regret": 0.0,
            "mean_regret": 0.0,
        },
        _row("ours", ours, exhaustive),
    ]
    share = rows[1]["targets_right"]
    others: dict[str, tuple[Callable[[Table, int], list[Candidate]], int]] = {"random": (random_order, seeds)}
    for name in ("GridSampler", "TPESampler", "NSGAIISampler"):
        others[f"Optuna {name}"] = (optuna_order(name), optuna_seeds)
    for name, (order, count) in others.items():
        runs = [_matched(tables, order, seed, share) for seed in range(count)]
        rows.append(_row(name, runs, exhaustive))
    best = min(row["time_vs_exhaustive"] for row in rows if row["method"].startswith("Optuna"))
    return rows, {
        "targets_right": share,
        "cost_vs_exhaustive": rows[1]["time_vs_exhaustive"],
        "cost_vs_best_optuna": rows[1]["time_vs_exhaustive"] / best,
        "median_regret": rows[1]["median_regret"],
    }


def _ours(tables: Sequence[Table], seed: int) -> tuple[float, int, float, list[float]]:
    time, images, rights, regrets = 0.0, 0, [], []
    for table in tables:
        order = list(range(table.samples))
        random.Random(seed).shuffle(order)
        replay = Replay(table, order, next(iter(REGISTRY)))
        right, own = judge(table, replay.search())
        time, images = time + replay.spent, images + replay.images
        rights.append(right)
        regrets += own
    return time, images, float(np.mean(rights)), regrets


def _matched(
    tables: Sequence[Table], order: Callable[[Table, int], list[Candidate]], seed: int, share: float
) -> tuple[float, int, float, list[float]]:
    parts = [cost_to_match(table, order(table, seed), share) for table in tables]
    times, images, rights, regrets = zip(*parts, strict=True)
    return sum(times), sum(images), float(np.mean(rights)), [regret for own in regrets for regret in own]


def _row(name: str, runs: Sequence[tuple[float, int, float, list[float]]], exhaustive: float) -> dict[str, Any]:
    return {
        "method": name,
        "images": round(median(images for _, images, _, _ in runs)),
        "time_vs_exhaustive": median(time / exhaustive for time, _, _, _ in runs),
        "targets_right": median(right for _, _, right, _ in runs),
        "median_regret": median(median(regrets) for _, _, _, regrets in runs),
        "mean_regret": median(float(np.mean(regrets)) for _, _, _, regrets in runs),
    }


def main() -> None:
    """Replay and print the comparison."""
    made = parser(__doc__ or "")
    made.add_argument("--seeds", type=int, default=20, help="seeds of ours and of random search")
    made.add_argument("--optuna-seeds", type=int, default=3, help="seeds of each Optuna sampler")
    arguments = made.parse_args()
    recorded = {cell: [point for point in points if point.blocks] for cell, points in read("exhaustive").items()}
    tables = [Table(cell, points) for cell, points in recorded.items() if points]
    rows, summary = compare(tables, arguments.seeds, arguments.optuna_seeds)
    show("search cost, medians over seeds", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
