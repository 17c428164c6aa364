"""What a busy neighbour costs a CPU pipeline: with threads that spin (the default), that sleep, and with one thread.

A search on embedded pipelines uses one thread, on other models threads that sleep. For each setting a process of its
own loads an embedded denoiser and times calls, first alone, then beside one busy process per core.

Workers of a search on embedded pipelines time beside each other, a core each. Does that shift speed-ups? The second
table has those of the gentlest and the harshest point of each accelerator, alone and beside another worker in turns.

Run it as ``python -m benchmarks.contention`` on a machine that is otherwise quiet; it takes about four minutes.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.output import parser, show
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import Candidate, Cell
from pytest_diffaccel.measure.threads import use_one_thread, wait_passively

_SPIN = "while True: pass"
_TIME_CALLS = """
import json, statistics, sys, time
import torch
from pytest_diffaccel import load_pipeline

unet = load_pipeline("SD1.5", device="cpu").unet
side, width = unet.config.sample_size, unet.config.cross_attention_dim
latents, text = torch.randn(8, 4, side, side), torch.randn(8, 24, width)
times = []
with torch.inference_mode():
    for _ in range(2 + int(sys.argv[1])):
        began = time.perf_counter()
        unet(latents, 500, text)
        times.append(time.perf_counter() - began)
print(json.dumps({"median_ms": 1000 * statistics.median(times[2:]), "worst_ms": 1000 * max(times[2:])}))
"""

_CELL = Cell("SD1.5", "DDIM", 20)
_PROMPTS, _SEEDS = ["red apple on a blue background"] * 4, [0, 1, 2, 3]
# Another worker: it generates without end, and says when it has begun.
_NEIGHBOUR = f"""
from pytest_diffaccel import accelerate, load_pipeline
from pytest_diffaccel.measure.threads import use_one_thread

use_one_thread()
pipeline = load_pipeline("SD1.5", device="cpu")
with accelerate(pipeline, {{"DeepCache": {{"cache_interval": 3, "cache_branch_id": 0}}}}, steps=20) as generate:
    while True:
        generate({_PROMPTS}, {_SEEDS})
        print("generated", flush=True)
"""


def time_calls(settings: Mapping[str, str], calls: int, neighbours: int) -> dict[str, Any]:
    """Time denoiser calls under OpenMP's ``settings``, beside busy processes.

    Returns:
        Median and worst time of a call, milliseconds.
    """
    busy = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(neighbours)]
    try:
        environment = {**os.environ, **settings}
        command = [sys.executable, "-c", _TIME_CALLS, str(calls)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    times: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return times


@contextmanager
def _neighbour() -> Iterator[subprocess.Popen[str]]:
    """A process that generates on one core, which may be stopped and continued."""
    process = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def time_runs(rounds: int) -> dict[tuple[str, bool], list[float]]:
    """Seconds of whole runs by candidate and by whether another worker generates meanwhile, in random order."""
    wait_passively()
    use_one_thread()
    from pytest_diffaccel import accelerate, load_pipeline

    pipeline = load_pipeline("SD1.5", device="cpu")
    runs = {"": Candidate(_CELL, "", {})}
    for accelerator in default_registry().suiting(_CELL.pipe):
        grid = accelerator.grid(_CELL, coarse=True)
        runs |= {(one := Candidate(_CELL, accelerator.name, params)).key: one for params in (grid[0], grid[-1])}
    seconds: dict[tuple[str, bool], list[float]] = {}
    with _neighbour() as neighbour:
        for _ in range(rounds + 1):
            for busy in random.sample([False, True], 2):
                neighbour.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
                for key in random.sample(list(runs), len(runs)):
                    with accelerate(pipeline, runs[key].params, steps=_CELL.steps) as generate:
                        began = time.perf_counter()
                        generate(_PROMPTS, _SEEDS)
                        seconds.setdefault((key, busy), []).append(time.perf_counter() - began)
    return {key: times[1:] for key, times in seconds.items()}  # a first run may take longer


def shifts(seconds: Mapping[tuple[str, bool], list[float]]) -> list[dict[str, Any]]:
    """Each candidate's speed-up alone, beside another worker, and how far that shifts it, percent."""
    rows = []
    for key in dict.fromkeys(key for key, _ in seconds if key):
        alone, beside = (
            [math.log(plain_s / own_s) for plain_s, own_s in zip(seconds["", busy], seconds[key, busy], strict=True)]
            for busy in (False, True)
        )
        error = math.sqrt(sum(statistics.variance(one) / len(one) for one in (alone, beside)))
        rows.append(
            {
                "candidate": key.removeprefix(f"{_CELL}-"),
                "alone": math.exp(statistics.fmean(alone)),
                "beside": math.exp(statistics.fmean(beside)),
                "shift_%": 100 * (statistics.fmean(beside) - statistics.fmean(alone)),
                "standard_error_%": 100 * error,
            }
        )
    return rows


def main() -> None:
    """Time the settings, alone and beside busy neighbours, and print the slow-down; then the shifts of speed-ups."""
    made = parser(__doc__ or "")
    made.add_argument("--calls", type=int, default=20)
    made.add_argument("--rounds", type=int, default=10, help="timed runs of each candidate (default: 10; at least 2)")
    arguments = made.parse_args()
    cores = os.cpu_count() or 1
    rows, slowdowns = [], {}
    threads = {"OMP_NUM_THREADS": str(cores)}
    for name, settings in {
        "spinning": threads,
        "sleeping": {**threads, "OMP_WAIT_POLICY": "PASSIVE"},
        "one": {"OMP_NUM_THREADS": "1"},
    }.items():
        alone = time_calls(settings, arguments.calls, 0)
        beside = time_calls(settings, arguments.calls, cores)
        slowdowns[f"{name}_slowdown"] = beside["median_ms"] / alone["median_ms"]
        rows += [
            {"threads": name, "busy neighbours": 0, **alone},
            {"threads": name, "busy neighbours": cores, **beside},
        ]
    shifted = shifts(time_runs(arguments.rounds))
    mean = {"mean_shift_%": statistics.fmean(one["shift_%"] for one in shifted)}
    if arguments.json:
        show("", rows, {**slowdowns, **mean, "speedups": shifted}, as_json=True)
        return
    show("denoiser calls beside busy neighbours", rows, slowdowns, as_json=False)
    show("speed-ups beside another worker", shifted, mean, as_json=False)


if __name__ == "__main__":
    main()
