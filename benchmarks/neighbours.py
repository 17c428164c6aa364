"""Do workers on other GPUs slow a denoiser that waits for its CPU core?

Run ``python -m benchmarks.neighbours`` on a host with several GPUs that are otherwise idle; it takes a minute or two.
One process per GPU loads a pipeline; then the first of them denoises alone, and all at once, in turns. One picture at a
time: that leaves the GPU waiting for Python, as small models and cheap accelerated steps do. Only the first process's
steps count. How far turns of one kind are apart is what the machine does of itself: the cores of a virtual machine
are often shared with others.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from itertools import product
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from queue import Empty
from typing import Any, TypeAlias

from benchmarks.output import parser, show
from pytest_diffaccel.devices import Gpu, NoSuchGpu, choose_gpus, use_gpu
from pytest_diffaccel.matrix import PIPES
from pytest_diffaccel.measure.statistics import mean_interval

_STEPS = 10
_COMPANY = _ALONE, _BESIDE = ("alone", "beside the others")
# A process that has died would leave the others waiting.
_PATIENCE_S = 300.0
#: Round, company, and the times of the first process's steps, milliseconds.
Timed: TypeAlias = tuple[int, str, list[float]]


def usable_gpus() -> list[Gpu]:
    """All that this process may use, at least one.

    Raises:
        SystemExit: when there is none; says why.
    """
    try:
        return choose_gpus(())
    except NoSuchGpu as error:
        # What follows advises on an option that benchmarks do not have.
        raise SystemExit(str(error).partition(";")[0].removeprefix("--gpus: ")) from None


def denoise(place: int, gpu: Gpu, options: Any, barrier: Barrier, timed_steps: Queue[Timed]) -> None:
    """What one process does; the first one tells its times.

    Args:
        place: the process's place among all.
        gpu: that it computes on.
        options: the command's.
        barrier: where all processes meet before each turn.
        timed_steps: where the times go.
    """
    use_gpu(gpu)
    from pytest_diffaccel import accelerate, load_pipeline
    from pytest_diffaccel.measure.clock import timed

    size = {"height": options.side, "width": options.side}
    with accelerate(load_pipeline(options.pipe), {}, steps=_STEPS, **size) as generate:
        generate(["red apple"], [0])
        for turn, company in product(range(options.rounds), _COMPANY):
            barrier.wait(_PATIENCE_S)
            if place > 0 and company == _ALONE:
                continue
            steps: list[float] = []
            ends = time.monotonic() + options.seconds
            while time.monotonic() < ends:
                steps += (1000 * step for step in timed(generate, ["red apple"], [0])[1].step_s)
            if place == 0:
                timed_steps.put((turn + 1, company, steps))


def report(turns: Sequence[Timed]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per turn, and how much slower a step is beside the others.

    Args:
        turns: of two rounds at least, both kinds in each.

    Returns:
        The rows; and in the summary the mean over the rounds of the slowdown (median beside the others over median
        alone) with its 95% interval, and the slowest over the fastest median of the turns alone.
    """
    medians = {(turn, company): statistics.median(times) for turn, company, times in turns}
    rows = [
        {
            "round": turn,
            "company": company,
            "steps": len(times),
            "median_ms": medians[turn, company],
            "p90_ms": statistics.quantiles(times, n=10)[-1],
        }
        for turn, company, times in turns
    ]
    rounds = sorted({turn for turn, _, _ in turns})
    slowdown = mean_interval([math.log(medians[turn, _BESIDE] / medians[turn, _ALONE]) for turn in rounds])
    alone = [medians[turn, _ALONE] for turn in rounds]
    return rows, {
        "slowdown": math.exp(slowdown.value),
        "slowdown_ci95": [round(math.exp(end), 4) for end in (slowdown.low, slowdown.high)],
        "scatter_alone": max(alone) / min(alone),
    }


def main() -> None:
    """Take turns and print the comparison."""
    made = parser(__doc__ or "")
    made.add_argument("--pipe", choices=PIPES, default="SD1.5")
    made.add_argument("--side", type=int, default=512, metavar="PX", help="height and width of a picture")
    made.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    made.add_argument("--rounds", type=int, default=10, help="times each kind of turn comes, at least 2")
    options = made.parse_args()
    if options.rounds < 2:
        made.error("--rounds: at least 2, else nothing tells how turns of one kind scatter")
    gpus = usable_gpus()
    if len(gpus) < 2:
        raise SystemExit(f"{gpus[0].physical} is the only GPU that can be used here; neighbours need two")
    start = multiprocessing.get_context("spawn")
    barrier, timed_steps = start.Barrier(len(gpus)), start.Queue()
    processes = [
        start.Process(target=denoise, args=(place, gpu, options, barrier, timed_steps), daemon=True)
        for place, gpu in enumerate(gpus)
    ]
    for process in processes:
        process.start()
    turns: list[Timed] = []
    while len(turns) < options.rounds * len(_COMPANY):
        try:
            turns.append(timed_steps.get(timeout=1.0))
        except Empty:
            if any(process.exitcode for process in processes):
                raise SystemExit("one of the processes failed; see above") from None
    for process in processes:
        process.join()
    rows, summary = report(turns)
    show("a step of the denoiser, one picture", rows, {"gpus": len(gpus), **summary}, as_json=options.json)


if __name__ == "__main__":
    main()
