"""Timings made by hand, for the statistics' tests: kinds with known costs and known noise."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_diffaccel.accelerators.acceleration import Generate
from pytest_diffaccel.accelerators.observer import Observer
from pytest_diffaccel.measure.clock import WallClock
from pytest_diffaccel.measure.measurement import Block, RunTiming

#: What a step of each kind costs, in seconds, without noise.
COSTS: Mapping[str, float] = {"plain": 0.10, "DeepCache:full": 0.10, "DeepCache:shallow@0": 0.04, "T-Gate:gated": 0.06}
FIXED_S = 0.12
BASELINE = ("plain",) * 10
FULL, SHALLOW = "DeepCache:full", "DeepCache:shallow@0"
CANDIDATE = (FULL, SHALLOW, SHALLOW, FULL, SHALLOW, SHALLOW, FULL, SHALLOW, SHALLOW, FULL)


def kernels_of_h100() -> dict[str, dict[str, list[list[int]]]]:
    """Durations (ns) of the kernels of 20 steps of either kind, read on an H100, alone and beside a process that
    multiplied matrices for a sixth of the time: the stand-in for SD1.5 at 512 px in batches of 8.
    """
    path = Path(__file__).with_name("data") / "kernels-h100.json.gz"
    found: dict[str, dict[str, list[list[int]]]] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def run(kinds: Sequence[str], noise: Sequence[float] | None = None) -> RunTiming:
    """A run of the given kinds; ``noise`` multiplies each step and, last, the fixed part."""
    factors = noise if noise is not None else [1.0] * (len(kinds) + 1)
    steps = tuple(COSTS[kind] * factor for kind, factor in zip(kinds, factors, strict=False))
    return RunTiming(sum(steps) + FIXED_S * factors[-1], steps, tuple(kinds))


def speedup_of(kinds: Sequence[str]) -> float:
    """The true speed-up of a candidate."""
    return run(BASELINE).total_s / run(kinds).total_s


def noisy_block(
    generator: np.random.Generator, kinds: Sequence[str], *, drift_sd: float, run_sd: float, step_sd: float
) -> Block:
    """A block under lognormal noise: drift that its runs share, of each run, and of each step."""
    drift = generator.normal(0, drift_sd)

    def noisy(of: Sequence[str]) -> RunTiming:
        whole = drift + generator.normal(0, run_sd)
        return run(of, [math.exp(whole + part) for part in generator.normal(0, step_sd, len(of) + 1)])

    return Block(noisy(BASELINE), (noisy(kinds),))


#: Lines of a conftest.py, beside which this file is imported: a steady clock in processes of their own, which take the
#: scale of their losses for known.
STEADY = """
import pytest
from searches import without_scale
from timings import SteadyClock
SteadyClock(pytest.MonkeyPatch())
without_scale(pytest.MonkeyPatch())
"""


# The machine's own, whatever stands in for them by now.
_OBSERVED, _TIMING = Generate.observed, WallClock.timing


def machines_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a steady clock, the machine's again."""
    monkeypatch.setattr(Generate, "observed", _OBSERVED)
    monkeypatch.setattr(WallClock, "timing", _TIMING)


class SteadyClock:
    """In place of the wall clock of runs: a step takes what its kind costs here, and a little by chance.

    Pictures are made all the same, but not again where a pipeline makes the same run a second time: its pictures would
    be those of the first. What a machine that others use says of speed is no part of a test, then.

    Attributes:
        step_s: seconds of a step, by kind or by method (``"DeepCache"``); of other kinds as long as a plain one.
        fixed_s: what lies outside the steps.
        runs: the kinds of every run that was timed, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step_s: dict[str, float] = {
            "plain": 0.02,
            "Echo:echo": 0.001,
            "Reply:echo": 0.002,
            "DeepCache": 0.008,
            FULL: 0.02,
            SHALLOW: 0.008,
        }
        self.fixed_s = 0.02
        self.runs: list[tuple[str, ...]] = []
        self._generator = np.random.default_rng(0)
        self._pictures: dict[Hashable, list[Any]] = {}

        def remembered(
            generate: Generate, prompts: Sequence[str], seeds: Sequence[int], observer: Observer | None
        ) -> list[Any]:
            if type(observer) is not WallClock:
                return _OBSERVED(generate, prompts, seeds, observer)
            run = _same_pictures(generate, prompts, seeds)
            if run not in self._pictures:
                self._pictures[run] = _OBSERVED(generate, prompts, seeds, observer)
            return list(self._pictures[run])

        monkeypatch.setattr(Generate, "observed", remembered)
        monkeypatch.setattr(WallClock, "timing", lambda _, kinds: self._timing(kinds))

    def _timing(self, kinds: Sequence[str]) -> RunTiming:
        self.runs.append(tuple(kinds))
        noise = np.exp(self._generator.normal(0, 0.01, len(kinds) + 1)).tolist()
        steps = tuple(self._cost_s(kind) * factor for kind, factor in zip(kinds, noise, strict=False))
        return RunTiming(sum(steps) + self.fixed_s * noise[-1], steps, tuple(kinds))

    def _cost_s(self, kind: str) -> float:
        method = kind.partition(":")[0]
        return self.step_s.get(kind, self.step_s.get(method, self.step_s["plain"]))


def _same_pictures(generate: Generate, prompts: Sequence[str], seeds: Sequence[int]) -> Hashable:
    """What all runs have in common that draw the same pictures."""
    scheduler = generate.pipeline.scheduler
    settings = (generate.steps, generate.guidance_scale, generate.height, generate.width)
    methods = (tuple(map(type, generate.accelerator.methods)), str(generate.params))
    return generate.pipeline, type(scheduler), str(scheduler.config), settings, methods, tuple(prompts), tuple(seeds)
