"""Results of cases made by hand, for tests of what is done with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.search.results import Chosen, Figures, Measured

CELL = Cell("SD1.5", "DDIM", 20)
PARAMS: Params = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
FIGURES = Figures(
    candidate=Candidate(CELL, "DeepCache", PARAMS),
    speedup=Interval(1.23456789, 1.2, 1.25),
    wall_speedup=Interval(1.24, 1.1, 1.4),
    estimates_agree=True,
    lpips=Interval(0.0123, 0.01, 0.015),
    psnr_db=31.5,
    ssim=0.97,
    fired={"cached_steps": 10, "denoiser_calls": 20},
    peak_memory_mb=812.5,
    num_samples=4,
    environment="3f9c2ab01d7e",
    rounds_s=(0.5, 0.25),
)


def measured(candidate: Candidate, speedup: float, lpips: float, *, stored: bool = False, **more: Any) -> Measured:
    """A candidate's case that measured this."""
    made = replace(
        FIGURES,
        candidate=candidate,
        speedup=Interval(speedup, 0.95 * speedup, 1.05 * speedup),
        lpips=Interval(lpips, lpips, lpips),
    )
    return Measured(made, stored, **more)


def chosen(cell: Cell, accelerator: str, target: float, params: Params) -> Chosen:
    """What stands for a target."""
    key = GoldenKey(cell, accelerator, target)
    return Chosen(key, params, Interval(target, target, target), 0.1)
