"""What a busy neighbour costs a CPU pipeline: with threads that spin (the default), that sleep, and with one thread.

A search on embedded pipelines uses one thread, on other models threads that sleep. For each setting a process of its
own loads an embedded denoiser and times calls, first alone, then beside one busy process a core. Run it as
``python -m benchmarks.contention`` on a machine that is otherwise quiet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.output import parser, show

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


def main() -> None:
    """Time the settings, alone and beside busy neighbours, and print the slow-down."""
    made = parser(__doc__ or "")
    made.add_argument("--calls", type=int, default=20)
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
    show("denoiser calls beside busy neighbours", rows, slowdowns, as_json=arguments.json)


if __name__ == "__main__":
    main()
