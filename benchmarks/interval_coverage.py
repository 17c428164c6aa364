"""How often do 95% intervals of a speed-up hold the true one? On simulated blocks with the noise of real machines.

Run ``python -m benchmarks.interval_coverage``; no pipeline is needed. The noise's sizes are those of the recorded
blocks (``benchmarks/data/blocks.parquet``). Of each model of noise and number of blocks, many measurements of one
candidate are simulated and estimated by the code that real ones go through, beside what one does without it: the
quotient of two means with the usual error propagation, and of pytest-benchmark's minima and medians, which have no
interval of their own, with the ones that its table suggests (its standard deviation, and its interquartile range as
the notches of McGill, Tukey and Larsen, 1978). The last models are of a machine that switches between two speeds, as an
idle virtual one did (``benchmarks/data/blocks-idle-vm.json``), with modes that last so many seconds on average.
Columns are the coverage by number of blocks; ``half`` is the median half-width of the intervals from 8 of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.output import parser, show
from benchmarks.recorded import Point, read
from pytest_diffaccel.measure.measurement import RunTiming
from pytest_diffaccel.measure.statistics import trimmed_mean
from pytest_diffaccel.measure.step_kinds import Array, RunTimes, log_speedup

COUNTS = (3, 4, 6, 8, 12, 20, 40)
RUNS = 10_000
# Simulated at once: bounds the memory.
_CHUNK = 500
# DeepCache with interval 3 in 20 steps: a step and what lies outside the steps, in baseline steps.
STEPS = ("full",) * 20
KINDS = tuple("full" if step % 3 == 0 else "shallow" for step in range(20))
_RUNS = STEPS, KINDS
COSTS: Mapping[str, float] = {"full": 1.0, "shallow": 0.13}
FIXED = 0.8
_NORMAL_95 = 1.96
# Blocks for which the width of intervals is shown.
_SHOWN = 8
# Blocks recorded beside other work varied this much more than those on a quiet machine.
_BUSY = 3.0
# A machine with two speeds, as recorded (recorded.read_idle_vm): in the slow mode everything takes this much longer, a
# full step takes this many seconds in the fast one, and each step differs from others by this much.
_SLOW, _FULL_S, _MODES_STEP_SD = 1.32, 0.175, 0.03
# How long a mode lasts on average, seconds: much less than a step, a few steps, a run, several blocks.
_DWELL_S = (0.1, 0.5, 3.0, 60.0)
# Time is told in parts of a full step, and this many others pass before the next block.
_PARTS, _PARTS_BETWEEN = 8, 80


@dataclass(frozen=True)
class Noise:
    """Noise of the logarithm of a time, as fitted.

    Attributes:
        block_sd: what all runs of a block share.
        run_sd: of each run beside it.
        step_sd: of each step beside it.
        correlation: of a step with the one before.
        spike_share: share of steps that something held up.
        spike_mean: by how much, as a share of the step, on average.
        df: degrees of freedom of the steps' noise (Student's t); infinite for a normal one.
        drift: whether the blocks' level wanders (a random walk through all runs) instead of jumping.
        dwell_s: how long each of the machine's two speeds lasts on average, seconds; infinite for one speed.
    """

    block_sd: float
    run_sd: float
    step_sd: float
    correlation: float = 0.0
    spike_share: float = 0.0
    spike_mean: float = 0.0
    df: float = math.inf
    drift: bool = False
    dwell_s: float = math.inf


def fitted(points: list[Point]) -> Noise:
    """All sizes of the noise of recorded blocks."""
    pairs = [_residuals(point) for point in points]
    levels = np.concatenate([np.stack([base, run], 1) - np.median([base, run], axis=1) for base, run, _ in pairs])
    steps = [row for _, _, rows in pairs for row in rows]
    every = np.concatenate(steps)
    scale = 1.4826 * float(np.median(np.abs(every)))
    shared = max(0.0, float(np.cov(levels.T)[0, 1]))
    quiet = [np.clip(row, -3 * scale, 3 * scale) for row in steps]
    follows = sum(float(row[1:] @ row[:-1]) for row in quiet) / sum(float(row[:-1] @ row[:-1]) for row in quiet)
    held_up = every[every > 4 * scale]
    return Noise(
        block_sd=math.sqrt(shared),
        run_sd=math.sqrt(max(0.0, float(levels.var()) - shared)),
        step_sd=scale,
        correlation=min(0.9, max(0.0, follows)),
        spike_share=len(held_up) / len(every),
        spike_mean=float(np.mean(np.expm1(held_up))) if len(held_up) else 0.0,
    )


def _residuals(point: Point) -> tuple[Array, Array, list[Array]]:
    """Levels of each block's baseline and candidate run, and what each run's steps differ from them (logarithms)."""
    base, run, steps = [], [], []
    for pick, levels in ((lambda block: block.baseline, base), (lambda block: block.runs[0], run)):
        runs: list[RunTiming] = [pick(block) for block in point.blocks]
        kinds = np.array(runs[0].kinds)
        logs = np.log([one.step_s for one in runs])
        for kind in dict.fromkeys(runs[0].kinds):
            logs[:, kinds == kind] -= np.median(logs[:, kinds == kind])
        own = np.median(logs, axis=1)
        levels += own.tolist()
        steps += list(logs - own[:, None])
    return np.array(base), np.array(run), steps


def models(noise: Noise) -> dict[str, Noise]:
    """The fitted noise in the shapes that machines give it; on a busy one all of it, and runs that differ more."""
    plain = replace(noise, correlation=0.0, spike_share=0.0)
    return {
        "lognormal": plain,
        "heavy tails": replace(plain, df=3.0),
        "drift": replace(plain, drift=True),
        "AR(1)": replace(plain, correlation=noise.correlation),
        "spikes": replace(plain, spike_share=noise.spike_share, spike_mean=noise.spike_mean),
        "busy machine": replace(noise, block_sd=_BUSY * noise.block_sd, run_sd=_BUSY * noise.run_sd),
        **{f"two speeds, {dwell:g} s": Noise(0.0, 0.0, _MODES_STEP_SD, dwell_s=dwell) for dwell in _DWELL_S},
    }


def simulated(noise: Noise, runs: int, count: int, generator: np.random.Generator) -> tuple[RunTimes, RunTimes]:
    """Baseline and candidate of ``runs`` measurements of ``count`` blocks each."""
    level = generator.normal(0, noise.block_sd, (runs, count, 1)).repeat(2, axis=2)
    if noise.drift:
        # As far from one block to the next as blocks differ; half of that between the two runs of a block.
        pace = noise.block_sd * math.sqrt(0.5)
        level = np.cumsum(generator.normal(0, pace, (runs, count * 2)), axis=1).reshape(runs, count, 2)
    level = level + generator.normal(0, noise.run_sd, level.shape)
    swapped = generator.random((runs, count, 1)) < 0.5
    level = np.where(swapped, level[..., ::-1], level)
    baseline, candidate = level[..., :1], level[..., 1:]
    if math.isfinite(noise.dwell_s):
        baseline, candidate = _modes(noise.dwell_s, runs, count, generator)
    return _times(noise, baseline, STEPS, generator), _times(noise, candidate, KINDS, generator)


def _modes(dwell_s: float, runs: int, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Levels (log) of all steps, and of the fixed part, where the machine's speed has two modes, equally frequent.

    The baseline always comes first, as good as a random order: such a machine's history looks the same backwards.
    """
    parts = [[max(1, round(_PARTS * cost)) for cost in (*(COSTS[kind] for kind in kinds), FIXED)] for kinds in _RUNS]
    lengths = np.array([*parts[0], *parts[1], _PARTS_BETWEEN])
    # Chance of the other mode after a part (a telegraph process).
    other = -math.expm1(-2 * _FULL_S / _PARTS / dwell_s) / 2
    switches = generator.random((runs, count * lengths.sum()), dtype=np.float32) < other
    switches[:, 0] = generator.random(runs) < 0.5
    slow = np.logical_xor.accumulate(switches, axis=1).reshape(runs, count, -1)
    shares = np.add.reduceat(slow, np.cumsum(lengths) - lengths, axis=-1, dtype=float) / lengths
    levels = np.log1p((_SLOW - 1) * shares) - math.log((1 + _SLOW) / 2)
    return levels[..., : len(parts[0])], levels[..., len(parts[0]) : -1]


def _times(noise: Noise, level: Array, kinds: tuple[str, ...], generator: np.random.Generator) -> RunTimes:
    shape = (*level.shape[:-1], len(kinds) + 1)
    own = generator.standard_t(noise.df, shape) if math.isfinite(noise.df) else generator.normal(size=shape)
    for step in range(1, len(kinds)):
        own[..., step] = noise.correlation * own[..., step - 1] + math.sqrt(1 - noise.correlation**2) * own[..., step]
    factors = np.exp(level + noise.step_sd * np.clip(own, -30, 30))
    if noise.spike_share:
        factors *= 1 + (generator.random(shape) < noise.spike_share) * generator.exponential(noise.spike_mean, shape)
    steps = np.array([COSTS[kind] for kind in kinds]) * factors[..., :-1]
    return RunTimes.from_steps(FIXED * factors[..., -1:], steps[..., None, :], kinds)


def totals(times: RunTimes) -> Array:
    """Whole runs' times, (runs, blocks)."""
    found: Array = times.fixed_s[..., 0] + sum(steps.sum(axis=(-1, -2)) for steps in times.step_s.values())
    return found


Estimate = Callable[[RunTimes, RunTimes], tuple[Array, Array]]


def wall(baseline: RunTimes, candidate: RunTimes) -> tuple[Array, Array]:
    """Our estimate from whole runs."""
    value, half = trimmed_mean(np.log(totals(baseline) / totals(candidate)))
    return value, half


def quotient_of(level: Callable[[Array], Array], error: Callable[[Array], Array]) -> Estimate:
    """The quotient of two runs' levels, with their standard errors propagated."""

    def estimate(baseline: RunTimes, candidate: RunTimes) -> tuple[Array, Array]:
        both = [totals(baseline), totals(candidate)]
        above, below = (level(times) for times in both)
        relative = [error(times) / level(times) for times in both]
        return np.log(above / below), _NORMAL_95 * np.hypot(*relative)

    return estimate


def _mean_error(times: Array) -> Array:
    error: Array = times.std(axis=-1, ddof=1) / math.sqrt(times.shape[-1])
    return error


def _notch(times: Array) -> Array:
    low, high = np.quantile(times, (0.25, 0.75), axis=-1)
    notch: Array = 1.57 * (high - low) / math.sqrt(times.shape[-1]) / _NORMAL_95
    return notch


_OURS = "step kinds (ours)"
METHODS: Mapping[str, Estimate] = {
    _OURS: log_speedup,
    "wall (ours)": wall,
    "quotient of means": quotient_of(lambda times: times.mean(axis=-1), _mean_error),
    "quotient of minima": quotient_of(lambda times: times.min(axis=-1), _mean_error),
    "quotient of medians": quotient_of(lambda times: np.median(times, axis=-1), _notch),
}


def covered(noise: Noise, count: int, seed: int) -> Iterator[tuple[str, float, float]]:
    """Each method's coverage and the median half-width of its intervals."""
    generator = np.random.default_rng([seed, count])
    truth = math.log((FIXED + sum(COSTS[kind] for kind in STEPS)) / (FIXED + sum(COSTS[kind] for kind in KINDS)))
    hits: dict[str, list[float]] = {name: [] for name in METHODS}
    halves: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(RUNS // _CHUNK):
        baseline, candidate = simulated(noise, _CHUNK, count, generator)
        for name, estimate in METHODS.items():
            value, half = estimate(baseline, candidate)
            hits[name].append(float(np.mean(np.abs(value - truth) <= half)))
            halves[name].append(float(np.median(half)))
    for name in METHODS:
        yield name, float(np.mean(hits[name])), float(np.mean(halves[name]))


def main() -> None:
    """Print every method's coverage by model of noise and number of blocks."""
    arguments = parser(__doc__ or "").parse_args()
    noise = fitted([point for own in read("blocks").values() for point in own])
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for number, (model, own) in enumerate(models(noise).items()):
        for count in COUNTS:
            for name, share, half in covered(own, count, number):
                row = rows.setdefault((model, name), {"noise": model, "method": name})
                row[f"n={count}"] = share
                if count == _SHOWN:
                    row["half"] = half
    ours = [row[f"n={count}"] for (_, name), row in rows.items() if name == _OURS for count in COUNTS]
    sizes = {name: round(value, 4) for name, value in vars(noise).items() if name.endswith(("sd", "correlation"))}
    summary: dict[str, Any] = {
        "recorded noise": sizes,
        "least coverage of step kinds": min(ours),
        "median coverage of step kinds": float(np.median(ours)),
        "largest coverage of step kinds": max(ours),
    }
    show("coverage of 95% intervals", list(rows.values()), summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
