"""Does the gate cry wolf, and does it catch what it should? Its real test on simulated clocks, at several noises.

Run ``python -m benchmarks.gate_power``; no pipeline is needed, and it takes under a minute on two cores. A gate run is
50 cases. Each case has a reference, recorded in a session of its own by the same code, and is then timed in blocks:
every step of every run is simulated, and goes through the figures, looks and boundaries that judge a real case. A/A
runs show false alarms; in the others one case is slower by the smallest slowdown that matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.output import parser, show
from pytest_diffaccel.gate.case_plan import speed_share
from pytest_diffaccel.gate.clocks import DEVICE, HOST, WALL, Clock
from pytest_diffaccel.gate.figures import fast_seconds, steps_that_tell
from pytest_diffaccel.gate.sequential import (
    IMPROVED,
    OK,
    OPEN,
    REGRESSED,
    Array,
    Design,
    Estimate,
    lasting_sd,
    robust_mean,
)
from pytest_diffaccel.measure.step_kinds import RunTimes

CASES = 50
# The steps of one run: an accelerator that computes every third step in full.
BASELINE = ("full",) * 20
CANDIDATE = tuple("full" if step % 3 == 0 else "shallow" for step in range(20))
COSTS = {"full": 1.0, "shallow": 0.4}
FIXED = 1.2
# What the first steps of a run take, about.
_RUN_S = 0.3
# Simulated at once; bounds memory.
_CHUNK = 2000

#: Factors on the time of runs that follow each other, of shape (cases, runs in order) and a last axis of the run's
#: steps, or of 1 where a run is disturbed as a whole; the last argument makes random numbers.
Noise = Callable[[tuple[int, int], np.random.Generator], Array]


def quiet(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """A quiet GPU: 1% per run."""
    return np.exp(generator.normal(0, 0.01, shape))[..., None]


def heavy_tailed(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """A GPU whose runs are now and then much slower: Student's t with 3 degrees of freedom, standard deviation 1%."""
    return np.exp(generator.standard_t(3, shape) * 0.01 / math.sqrt(3))[..., None]


def drifting(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """A GPU that warms up: 1% per run, and up to 10% slower from the first run to the last."""
    drift = generator.uniform(0, 0.1, (shape[0], 1)) * np.linspace(0, 1, shape[1])
    return np.exp(generator.normal(0, 0.01, shape) + drift)[..., None]


def correlated(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """Runs that resemble the run before: a first-order autoregression with coefficient 0.8, 1.4% per run."""
    noise = generator.normal(0, 0.014 * math.sqrt(1 - 0.8**2), shape)
    noise[:, 0] = generator.normal(0, 0.014, shape[0])
    for run in range(1, shape[1]):
        noise[:, run] += 0.8 * noise[:, run - 1]
    return np.exp(noise)[..., None]


def slow_host(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """A GPU that waits for a host whose cores others use, too: 3.3% per run, and 4.7% per figure."""
    return np.exp(generator.normal(0, 0.033, shape))[..., None]


def shared_cores(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """Shared CPU cores: others slow some steps of most runs, by a third and more; 10% per run, and 1% per speed-up by
    step kinds from 8 blocks.
    """
    steps = np.arange(len(BASELINE))
    begin = generator.integers(0, len(steps), shape)[..., None]
    length = generator.integers(5, len(steps), shape)[..., None]
    by = generator.exponential(0.32, shape) * (generator.random(shape) < 0.7)
    disturbed = (steps >= begin) & (steps < begin + length)
    return (1 + generator.normal(0, 0.014, shape))[..., None] * (1 + by[..., None] * disturbed)


def steady_device(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """The time that an H100 itself takes, however the host feeds it: 0.3% per run."""
    return np.exp(generator.normal(0, 0.003, shape))[..., None]


def restless_host(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """What a shared host takes to launch steps: by half more in one of its two speeds, which last from a third of a
    second to minutes; and 4% per run.
    """
    dwell_s = np.exp(generator.uniform(math.log(0.3), math.log(180), (shape[0], 1)))
    switches = generator.random(shape) < 1 - np.exp(-_RUN_S / dwell_s)
    is_slow = (generator.integers(0, 2, (shape[0], 1)) + np.cumsum(switches, axis=1)) % 2
    return (np.exp(generator.normal(0, 0.04, shape)) * (1 + 0.5 * is_slow))[..., None]


@dataclass(frozen=True)
class Level:
    """A noise level, and what the gate is asked to see there.

    Attributes:
        noise: of runs.
        clock: what is timed by.
        slowdown: the smallest that matters, as a fraction.
        lasting_sd: by how much sessions differ beyond what those of a quiet device do (standard deviation).
        step_sd: noise of each step beside the run's, as a share of it.
    """

    noise: Noise
    clock: Clock
    slowdown: float
    lasting_sd: float = 0.0
    step_sd: float = 0.01

    @property
    def design(self) -> Design:
        """The design that a case gets whose blocks fit into the budget."""
        return Design(
            self.clock.most,
            math.log1p(self.slowdown),
            speed_share(CASES),
            self.clock.session_sd,
            self.clock.lasting_share,
        )

    @property
    def session_sd(self) -> float:
        """By how much a session's logarithms are shifted."""
        return math.hypot(self.design.session_sd, self.lasting_sd)


LEVELS = {
    "quiet GPU, 1%": Level(quiet, WALL["cuda"], 0.03),
    "heavy tails, 1%": Level(heavy_tailed, WALL["cuda"], 0.03),
    "warming up, 1%": Level(drifting, WALL["cuda"], 0.03),
    "autocorrelated, 1.4%": Level(correlated, WALL["cuda"], 0.03),
    "shared CPU, 10%": Level(shared_cores, WALL["cpu"], 0.05),
    "slow host, 3.3%": Level(slow_host, WALL["cuda"], 0.2, 0.0253),
    "device time, restless host": Level(steady_device, DEVICE, 0.03, step_sd=0.005),
    "host time, restless host": Level(restless_host, HOST, 0.15),
}


def figures(level: Level, cases: int, count: int, slowdown: float, generator: np.random.Generator) -> Array:
    """Figures of cases whose candidate is slower by ``slowdown``, (cases, count)."""
    blocks = level.clock.blocks
    runs = 2 * count * blocks
    factors = level.noise((cases, runs), generator).reshape(cases, count, blocks, 2, -1)
    # The order within a block is random.
    swapped = generator.random((cases, count, blocks, 1)) < 0.5
    baseline = np.where(swapped, factors[..., 1, :], factors[..., 0, :])
    candidate = np.where(swapped, factors[..., 0, :], factors[..., 1, :]) * (1 + slowdown)
    noise = partial(_of_steps, level.step_sd, generator)
    seconds = _seconds if level.clock in WALL.values() else _seconds_of_first_steps
    found: Array = np.log(seconds(BASELINE, baseline, noise) / seconds(CANDIDATE, candidate, noise))
    return found


def _of_steps(sd: float, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Factors on the time of single steps."""
    factors: Array = 1 + sd * generator.standard_normal(shape, dtype=np.float32)
    return factors


def _seconds(kinds: tuple[str, ...], factors: Array, noise: Callable[[tuple[int, ...]], Array]) -> Array:
    """What simulated clocks tell: each step takes its kind's cost, times the run's factor and a noise of its own."""
    costs = np.array([COSTS[kind] for kind in kinds])
    steps = costs * factors * noise((*factors.shape[:-1], len(kinds)))
    return fast_seconds(RunTimes.from_steps(FIXED * factors[..., :1], steps[..., None, :], kinds))


def _seconds_of_first_steps(kinds: tuple[str, ...], factors: Array, noise: Callable[[tuple[int, ...]], Array]) -> Array:
    """The same by the first steps of runs, as :meth:`.Figure.from_first_steps` takes them: all but the first one."""
    first = kinds[1 : steps_that_tell(kinds)]
    steps = factors * noise((*factors.shape[:-1], len(first)))
    means = {kind: COSTS[kind] * steps[..., np.array(first) == kind].mean(axis=(-1, -2)) for kind in {*kinds}}
    seconds: Array = np.sum([kinds.count(kind) * mean for kind, mean in means.items()], axis=0)
    return seconds


def verdicts(level: Level, cases: int, slowdown: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Verdict of each case, and the number of blocks it took."""
    design = level.design
    shift = level.session_sd * generator.standard_normal((cases, 2))
    recorded = robust_mean(figures(level, cases, design.most, 0.0, generator) + shift[:, :1])
    sessions_sd = np.hypot(design.session_sd, lasting_sd(recorded.error * math.sqrt(design.most), design.lasting_share))
    reference = Estimate(recorded.mean, np.hypot(recorded.error, sessions_sd), recorded.df)
    found = np.full(cases, OPEN)
    used = np.zeros(cases)
    values = np.empty((cases, 0))
    for look in design.looks:
        left = np.flatnonzero(found == OPEN)
        if not len(left):
            break
        more = figures(level, len(left), look - values.shape[-1], slowdown, generator) + shift[left, 1:]
        values = np.concatenate([values, more], axis=-1)
        own = Estimate(reference.mean[left], reference.error[left], reference.df[left])
        decided = design.decide(values, own)
        found[left] = decided
        used[left] = look * level.clock.blocks
        values = values[decided == OPEN]
    return found, used


def many(level: Level, cases: int, slowdown: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """:func:`verdicts` in chunks that fit into memory."""
    parts = [verdicts(level, min(_CHUNK, cases - start), slowdown, generator) for start in range(0, cases, _CHUNK)]
    return np.concatenate([found for found, _ in parts]), np.concatenate([used for _, used in parts])


def row(name: str, level: Level, runs: int, generator: np.random.Generator) -> dict[str, Any]:
    """One noise level: false alarms of whole gate runs, and what becomes of a slowdown that matters."""
    unchanged, used = many(level, runs * CASES, 0.0, generator)
    slowed, used_slowed = many(level, 2000, level.slowdown, generator)
    measured = figures(level, 1000, 1, 0.0, generator).std()
    alarms = (unchanged.reshape(runs, CASES) == REGRESSED).any(axis=1)
    return {
        "noise": name,
        "sd_of_figure": float(measured),
        "slowdown": level.slowdown,
        "false_alarm_rate": float(alarms.mean()),
        "undecided": float((unchanged == OPEN).mean()),
        "falsely_improved": float((unchanged == IMPROVED).mean()),
        "blocks": float(used.mean()),
        "power": float((slowed == REGRESSED).mean()),
        "called_ok": float(np.isin(slowed, (OK, IMPROVED)).mean()),
        "blocks_slowed": float(used_slowed.mean()),
    }


def main() -> None:
    """Print a row per noise level, and the figures that the gate promises."""
    made = parser(__doc__ or "")
    made.add_argument("--runs", type=int, default=400, help="A/A gate runs of 50 cases per noise level (default: 400)")
    made.add_argument("--seed", type=int, default=0)
    arguments = made.parse_args()
    rows = [
        row(name, level, arguments.runs, np.random.default_rng([arguments.seed, place]))
        for place, (name, level) in enumerate(LEVELS.items())
    ]
    summary = {
        "false_alarm_rate": max(one["false_alarm_rate"] for one in rows),
        "power_at_3pct": rows[0]["power"],
        "power_at_5pct_cpu": next(one["power"] for one in rows if LEVELS[one["noise"]].clock == WALL["cpu"]),
        "called_ok": max(one["called_ok"] for one in rows),
    }
    show("the gate on simulated clocks", rows, summary, as_json=arguments.json)


if __name__ == "__main__":
    main()
