"""Threads of the libraries that a search computes with."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from threadpoolctl import threadpool_info
from pytest_diffaccel.measure.threads import solve_on_one_thread
import torch
torch.set_num_threads(2)
solve_on_one_thread()
print({library["num_threads"] for library in threadpool_info() if library["prefix"] == "libscipy_openblas"})
print(torch.get_num_threads())
"""


def test_equations_are_solved_on_one_thread_and_torch_keeps_its_own() -> None:
    environment = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    made = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    assert made.stdout.split("\n")[:2] == ["{1}", "2"]
