"""How much work a search's groups are, before anything is measured; pure Python."""

from __future__ import annotations

from pytest_diffaccel.matrix import Cell

#: A step of the unaccelerated embedded pipelines for one picture, seconds on 2 CPU cores (training/README.md).
EMBEDDED_STEP_S = {"SD1.5": 0.024, "SD2.1": 0.046, "SDXL": 0.030}
# The same of the full-size ones at their own sizes, on an NVIDIA H200 (benchmarks/data/nvidia-h200.jsonl).
_FULL_SIZE_STEP_S = {"SD1.5": 0.0077, "SD2.1": 0.0195, "SDXL": 0.0489}
# Of the candidates, the share that is evaluated at all; and the runs that a group's race and its winners take.
EVALUATED_SHARE, RUNS_A_GROUP = 0.25, 20


def step_weight(pipe: str, *, embedded: bool) -> float:
    """Cost of a step of a pipe; comparable between pipes of one model source, whatever the device."""
    return (EMBEDDED_STEP_S if embedded else _FULL_SIZE_STEP_S)[pipe]


def case_effort(cell: Cell, *, is_winners: bool, exhaustive: bool, embedded: bool) -> float:
    """Work that a case is expected to be, for comparison with others of the same search.

    Args:
        cell: the case's cell.
        is_winners: whether it looks for a group's winners; else it is a candidate's, which may be skipped.
        exhaustive: whether all candidates are measured in full.
        embedded: whether the pipelines are the embedded ones.
    """
    runs = 1.0 if exhaustive else RUNS_A_GROUP if is_winners else EVALUATED_SHARE
    return runs * cell.steps * step_weight(cell.pipe, embedded=embedded)
