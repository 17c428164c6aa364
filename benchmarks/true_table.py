"""What is true of a cell's grid: every point timed in many blocks and scored on all samples, and answers judged by it.

``python -m benchmarks.wall_clock --make-truth FILE --blocks 8 -- <options of pytest benches>`` makes a table, and goes
on where it was interrupted. Speed-ups come from whole runs alone (:func:`.wall_speedup`), losses from plain pictures of
the search's samples: nothing that a search estimates by is used.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.output import Progress
from benchmarks.plain_loop import Scene, points, scenes
from pytest_diffaccel.accelerators.acceleration import MethodDidNotAct
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.blocks import TimedRun, run_blocks
from pytest_diffaccel.measure.disturbance import watch_machine
from pytest_diffaccel.measure.measurement import Block, Interval, RunTiming
from pytest_diffaccel.measure.statistics import wall_speedup
from pytest_diffaccel.measure.threads import computing_threads
from pytest_diffaccel.records.environment import device_name
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.jsonfile import write_text
from pytest_diffaccel.search.predict.loss_model import equal_within
from pytest_diffaccel.search.predict.reach import SPEED_TOLERANCE
from pytest_diffaccel.settings.search_settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_diffaccel.accelerators.acceleration import Generate

#: What someone says of each key: the winner, or None for a target that is not met. A key that is absent is undecided.
Answers: TypeAlias = Mapping[GoldenKey, Candidate | None]

# Points that share a block's baseline.
_ABREAST = 6
_SEED = 20270211
_SECONDS_DECIMALS, _RATIO_DECIMALS, _LOSS_DECIMALS = 5, 4, 6


@dataclass
class TruePoint:
    """A point of the table.

    Attributes:
        candidate: what it is.
        contends: whether it may be a true winner: it is of the grid, and all of its methods act.
        losses: LPIPS of each of the search's samples; none yet while the table is made.
        seconds: of a baseline run and of its own, for each block.
    """

    candidate: Candidate
    contends: bool = True
    losses: tuple[float, ...] = ()
    seconds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def lpips(self) -> float:
        """Mean loss."""
        return fmean(self.losses)

    @property
    def speedup(self) -> Interval:
        """From all blocks, at least one, with its interval."""
        return wall_speedup([Block(_run(baseline_s), (_run(own_s),)) for baseline_s, own_s in self.seconds])

    def may_reach(self, target: float) -> bool:
        """Whether its speed-up may be the target's, less the tolerance of a search."""
        return self.speedup.high >= target * (1 - SPEED_TOLERANCE)

    def to_json(self) -> dict[str, Any]:
        """What JSON can say; figures only where they are known."""
        made: dict[str, Any] = {
            "cell": asdict(self.candidate.cell),
            "accelerator": self.candidate.accelerator,
            "params": self.candidate.params,
            "contends": self.contends,
        }
        if self.seconds:
            ends = (self.speedup.value, self.speedup.low, self.speedup.high)
            made["speedup"] = [round(end, _RATIO_DECIMALS) for end in ends]
        if self.losses:
            made["lpips"] = round(self.lpips, _LOSS_DECIMALS)
            made["losses"] = self.losses
        made["seconds"] = self.seconds
        return made

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TruePoint:
        """The point that :meth:`to_json` wrote."""
        return cls(
            candidate=Candidate(Cell(**data["cell"]), data["accelerator"], data["params"]),
            contends=data["contends"],
            losses=tuple(data.get("losses", ())),
            seconds=[(baseline_s, own_s) for baseline_s, own_s in data["seconds"]],
        )


def _run(seconds: float) -> RunTiming:
    return RunTiming(seconds, (), ())


@dataclass
class Truth:
    """A table of points.

    Attributes:
        conditions: what it was made of, as :func:`conditions` tells.
        device: what it was timed on.
        points: by candidate key.
    """

    conditions: Mapping[str, Any]
    device: str = ""
    points: dict[str, TruePoint] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, wanted: Mapping[str, Any]) -> Truth:
        """The table in a file; an empty one where there is no file.

        Raises:
            SystemExit: when it is of other conditions.
        """
        if not path.exists():
            return cls(wanted)
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["conditions"] != wanted:
            raise SystemExit(f"{path} is a table of {data['conditions']}, not of {wanted}; name another file")
        return cls(wanted, data["device"], {key: TruePoint.from_json(one) for key, one in data["points"].items()})

    def write(self, path: Path) -> None:
        """Replace the file: a line per point, in order of their keys."""
        head = {"conditions": self.conditions, "device": self.device}
        lines = (f"{_dump(key)}: {_dump(self.points[key].to_json())}" for key in sorted(self.points))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f'{_dump(head)[:-1]}, "points": {{\n' + ",\n".join(lines) + "\n}}\n")

    @property
    def blocks(self) -> int:
        """How many blocks every point has; 0 for a table that is not finished."""
        every = self.points.values()
        return min((len(one.seconds) if one.losses else 0 for one in every), default=0)

    def winner(self, key: GoldenKey, max_loss: float) -> TruePoint | None:
        """The contender of least loss whose speed-up is the target's at least; None where none of allowed loss is."""
        fast = [one for one in self._allowed(key, max_loss) if one.speedup.value >= key.target]
        return min(fast, key=lambda one: one.lpips, default=None)

    def is_sure(self, key: GoldenKey, max_loss: float) -> bool:
        """Whether the winner is the same at both ends of all intervals."""
        allowed = self._allowed(key, max_loss)
        slow, fast = (
            min(
                (one for one in allowed if getattr(one.speedup, end) >= key.target),
                key=lambda one: one.lpips,
                default=None,
            )
            for end in ("low", "high")
        )
        return slow is fast

    def surely_met(self, key: GoldenKey, max_loss: float) -> bool:
        """Whether a contender of allowed loss surely reaches the target."""
        return any(one.speedup.low >= key.target for one in self._allowed(key, max_loss))

    def _allowed(self, key: GoldenKey, max_loss: float) -> list[TruePoint]:
        group = (key.cell, key.accelerator)
        return [
            one
            for one in self.points.values()
            if one.contends and (one.candidate.cell, one.candidate.accelerator) == group and one.lpips <= max_loss
        ]

    @property
    def keys(self) -> list[GoldenKey]:
        """Everything that the table can judge, in order."""
        groups = {(one.candidate.cell, one.candidate.accelerator) for one in self.points.values()}
        keys = (GoldenKey(cell, name, target) for cell, name in groups for target in TARGETS)
        return sorted(keys, key=lambda key: key.prompt_order)


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def conditions(settings: Settings) -> dict[str, Any]:
    """What a table depends on: two settings of the same conditions have the same truth on one machine."""
    suiting = {one.name for cell in settings.cells for one in default_registry().suiting(cell.pipe)}
    return {
        "cells": [str(cell) for cell in settings.cells],
        "accelerators": [name for name in settings.accelerators if name in suiting],
        "grid": "coarse" if settings.coarse else "full",
        "models": settings.models,
        "prompts": settings.prompts and str(settings.prompts),
        "num_samples": settings.num_samples,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "gpus": settings.gpus is not None,
    }


@dataclass(frozen=True)
class Judgement:
    """How often someone's answers are right, counted over keys.

    Attributes:
        targets: keys judged.
        right: the true winner is named, or a point of allowed loss whose speed-up may reach the target and that loses
            no more, or more by what nobody could tell (:func:`.equal_within`), also one beyond the grid, where the grid
            may have no winner; or the target is called not met, and truth has no winner.
        false_met: a winner is named that surely misses the target.
        false_unattainable: the target is called not met, and a point of allowed loss surely reaches it.
        undecided: nothing is said.
        unknown: a winner is named that the table lacks: searches of the full grid look beyond it.
    """

    targets: int
    right: int
    false_met: int
    false_unattainable: int
    undecided: int
    unknown: int


def judge(truth: Truth, answers: Answers, max_loss: float, *, sure_only: bool = False) -> Judgement:
    """Judge answers by a finished table.

    Args:
        truth: the table.
        answers: winners by key; of other cells and accelerators they are not looked at.
        max_loss: largest mean LPIPS that was allowed.
        sure_only: whether to judge only keys whose winner is the same at both ends of the table's own intervals: where
            a speed-up lies at a target, chance decides what is true.
    """
    keys = [key for key in truth.keys if not sure_only or truth.is_sure(key, max_loss)]
    verdicts = [_verdict(truth, key, answers[key], max_loss) if key in answers else "undecided" for key in keys]
    names = ("right", "false_met", "false_unattainable", "undecided", "unknown")
    return Judgement(targets=len(verdicts), **{name: verdicts.count(name) for name in names})


def _verdict(truth: Truth, key: GoldenKey, named: Candidate | None, max_loss: float) -> str:
    best = truth.winner(key, max_loss)
    if named is None:
        if best is None:
            return "right"
        return "false_unattainable" if truth.surely_met(key, max_loss) else "wrong"
    point = truth.points.get(named.key)
    if point is None:
        return "unknown"
    if not point.may_reach(key.target):
        return "false_met"
    most = max_loss if best is None else best.lpips + equal_within(best.lpips)
    return "right" if point.lpips <= most and (best is not None or not point.contends) else "wrong"


def make(path: Path, settings: Settings, blocks: int, also: Iterable[Candidate]) -> Truth:
    """Make a table, or go on with one: score every point on all samples, then time all of them in blocks.

    Args:
        path: the table's file, written after each point and each block.
        settings: the cells and samples.
        blocks: timed blocks per point, at least 1.
        also: points beyond the grid that answers to be judged have named.
    """
    truth = Truth.read(path, conditions(settings))
    for cell in settings.cells:
        for one in points(settings, cell):
            truth.points.setdefault(one.key, TruePoint(one))
    for one in also:
        truth.points.setdefault(one.key, TruePoint(one, contends=False))
    if truth.blocks >= blocks:
        return truth
    progress: Progress | None = None
    for scene in scenes(settings):
        truth.device = device_name(scene.pipeline.device)
        progress = progress or Progress(_calls_left(truth, blocks, len(scene.batches)), "calls")
        _Maker(path, truth, scene, blocks, progress).run()
    return truth


def _calls_left(truth: Truth, blocks: int, batches: int) -> int:
    """Calls of a pipeline that a table lacks, not counting the baseline's pictures and warm-ups."""
    every = truth.points.values()
    calls = batches * sum(not one.losses for one in every)
    for cell in {one.candidate.cell for one in every}:
        for turn in range(blocks):
            runs = sum(one.candidate.cell == cell and len(one.seconds) <= turn for one in every)
            calls += runs + math.ceil(runs / _ABREAST)
    return calls


class _Maker:
    """Makes a cell's part of a table."""

    def __init__(self, path: Path, truth: Truth, scene: Scene, blocks: int, progress: Progress) -> None:
        self._path, self._truth, self._scene, self._blocks, self._progress = path, truth, scene, blocks, progress
        self._points = [one for one in truth.points.values() if one.candidate.cell == scene.cell]
        # Kinds of steps that have run in this process: a first run is slow.
        self._warm: set[str] = set()
        # Only those are timed.
        self._full = [batch for batch in scene.batches if len(batch[0]) == len(scene.batches[0][0])]
        device = scene.pipeline.device
        self._watch = watch_machine(device, computing_threads(device))

    def run(self) -> None:
        """Score, then time; each keeps what it has at once."""
        unscored = [one for one in self._points if not one.losses]
        if unscored:
            references, _ = self._scene.pictures({})
            # Shuffled: else the pace of one accelerator would stand for all in what is said to be left.
            for point in _shuffled(unscored, "score"):
                self._score(point, references)
                self._truth.write(self._path)
                self._progress.add(len(self._scene.batches), f"{self._scene.cell} scored")
        for turn in range(self._blocks):
            todo = [one for one in _shuffled(self._points, f"block {turn}") if len(one.seconds) <= turn]
            for start in range(0, len(todo), _ABREAST):
                part = todo[start : start + _ABREAST]
                self._time(part, turn, f"{turn} {start}")
                self._truth.write(self._path)
                self._progress.add(len(part) + 1, f"{self._scene.cell} round {turn + 1} of {self._blocks}")

    def _score(self, point: TruePoint, references: Sequence[Image]) -> None:
        first, *others = self._scene.batches
        with self._scene.generating(point.candidate.params) as generate:
            try:
                images = generate.counted(*first)
            except MethodDidNotAct:
                # As in a search: where one method leaves another nothing to do, the point is not one of both.
                point.contends = False
                images = generate.observed(*first, None)
            images = [*images, *(image for batch in others for image in generate.observed(*batch, None))]
            self._warm |= set(generate.kinds)
        # Rounded as they are kept, here and below: a table that is gone on with is the one that was not interrupted.
        point.losses = tuple(round(loss, _LOSS_DECIMALS) for loss in self._scene.losses(images, references))

    def _time(self, part: Sequence[TruePoint], turn: int, seed: str) -> None:
        """One block: the baseline and some points, in random order."""
        with ExitStack() as stack:
            baseline, *generators = [
                stack.enter_context(self._scene.generating(params))
                for params in ({}, *(one.candidate.params for one in part))
            ]
            self._warm_up([baseline, *generators])
            runs = [self._timed(generate, turn) for generate in generators]
            order = random.Random(f"{_SEED} {seed}").randrange(2**32)
            (made,) = run_blocks(self._timed(baseline, turn), runs, 1, seed=order, watch=self._watch)
        for point, block in zip(part, made, strict=True):
            point.seconds.append(
                (round(block.baseline.total_s, _SECONDS_DECIMALS), round(block.runs[0].total_s, _SECONDS_DECIMALS))
            )

    def _warm_up(self, generators: Iterable[Generate]) -> None:
        for generate in generators:
            if not self._warm >= set(generate.kinds):
                generate.observed(*self._full[0], None)
                self._warm |= set(generate.kinds)

    def _timed(self, generate: Generate, turn: int) -> TimedRun:
        batch = self._full[turn % len(self._full)]

        def one(_index: int) -> RunTiming:
            began = time.perf_counter()
            generate.observed(*batch, None)
            return _run(time.perf_counter() - began)

        return one


def _shuffled(points: Iterable[TruePoint], what: str) -> list[TruePoint]:
    """In an order that is the same whenever the table is gone on with."""
    ordered = sorted(points, key=lambda one: one.candidate.key)
    random.Random(f"{_SEED} {what}").shuffle(ordered)
    return ordered


def named(answers: Iterable[Answers]) -> Iterator[Candidate]:
    """Every winner that some answers name."""
    return (winner for one in answers for winner in one.values() if winner is not None)
