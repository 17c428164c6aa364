"""Cells, grids and candidates: valid, without repetitions, of the size meant, and the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pytest_diffaccel.accelerators.composition import Accelerator
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, Candidate, Cell, candidates, cells, groups, slug

REGISTRY = default_registry()
#: Those that suit the pipes that are searched where none are named.
SUITING = REGISTRY.suiting(PIPES[0])
CELLS = cells(PIPES, SCHEDULERS, STEPS)
BRANCHES = {"SD1.5": 12, "SD2.1": 12, "SDXL": 9}

each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_accelerator = pytest.mark.parametrize("accelerator", SUITING, ids=lambda accelerator: accelerator.name)


def whole_matrix(*, coarse: bool) -> list[Candidate]:
    return list(candidates(CELLS, list(REGISTRY), coarse=coarse))


def test_there_are_27_cells_pipe_first() -> None:
    assert len(CELLS) == len(set(CELLS)) == 27
    assert [cell.pipe for cell in CELLS] == [pipe for pipe in PIPES for _ in range(9)]
    assert str(CELLS[0]) == "SD1.5-DDIM-20"


def test_cells_take_iterators_too() -> None:
    assert cells(iter(PIPES), iter(SCHEDULERS), iter(STEPS)) == CELLS


@each_cell
@each_accelerator
@pytest.mark.parametrize("coarse", [False, True], ids=["full", "coarse"])
def test_every_point_of_a_grid_is_valid_and_there_once(cell: Cell, accelerator: Accelerator, coarse: bool) -> None:
    grid = accelerator.grid(cell, coarse=coarse)
    for params in grid:
        accelerator.check(params, cell.steps)
    keys = [Candidate(cell, accelerator.name, params).key for params in grid]
    assert len(keys) == len(set(keys)) > 0


@each_cell
@each_accelerator
def test_grids_are_sorted(cell: Cell, accelerator: Accelerator) -> None:
    grid = accelerator.grid(cell, coarse=False)
    order = ("cache_interval", "cache_branch_id", "gate_step", "sp_interval", "warm_up", "fi_interval", "ratio")
    values = [{name: value for point in params.values() for name, value in point.items()} for params in grid]
    rows = [[point[name] for name in (*order, "max_downsample") if name in point] for point in values]
    assert rows == sorted(rows)


@each_cell
@each_accelerator
def test_every_point_does_something(cell: Cell, accelerator: Accelerator) -> None:
    for params in accelerator.grid(cell, coarse=False):
        assert accelerator.counters(params, cell.steps)


@each_cell
def test_sizes_of_grids(cell: Cell) -> None:
    full = {accelerator.name: len(accelerator.grid(cell, coarse=False)) for accelerator in SUITING}
    coarse = {accelerator.name: len(accelerator.grid(cell, coarse=True)) for accelerator in SUITING}
    assert full["DeepCache"] == 7 * BRANCHES[cell.pipe]
    assert all(size <= 100 for name, size in full.items() if " and " in name)
    assert 0.08 <= sum(coarse.values()) / sum(full.values()) <= 0.17


@each_cell
def test_deepcache_grid_has_every_branch_with_every_interval(cell: Cell) -> None:
    (deepcache,) = REGISTRY.select(["DeepCache"])
    points = {tuple(params["DeepCache"].values()) for params in deepcache.grid(cell, coarse=False)}
    intervals = (2, 3, 4, 5, 6, 8, 10)
    assert points == {(interval, branch) for interval in intervals for branch in range(BRANCHES[cell.pipe])}


@each_cell
def test_tome_never_asks_sdxl_for_a_resolution_without_attention(cell: Cell) -> None:
    depths = {
        params["ToMe"]["max_downsample"]
        for accelerator in REGISTRY
        for params in accelerator.grid(cell, coarse=False)
        if "ToMe" in params
    }
    assert depths == ({2, 4} if cell.pipe == "SDXL" else {1, 2, 4, 8})


@each_cell
@each_accelerator
@pytest.mark.parametrize("coarse", [False, True], ids=["full", "coarse"])
def test_no_two_points_make_the_same_calls(cell: Cell, accelerator: Accelerator, coarse: bool) -> None:
    """T-GATE's intervals mean the same where an early gate leaves nothing to skip."""
    kinds = [accelerator.kinds(params, cell.steps) for params in accelerator.grid(cell, coarse=coarse)]
    assert len(set(kinds)) == len(kinds)


def test_keys_are_unique_in_the_whole_matrix() -> None:
    for coarse in (False, True):
        keys = Counter(candidate.key for candidate in whole_matrix(coarse=coarse))
        assert keys.most_common(1)[0][1] == 1


def test_whole_matrix_has_the_size_that_users_are_told() -> None:
    assert (len(whole_matrix(coarse=False)), len(whole_matrix(coarse=True))) == (10107, 1440)


def test_a_key_says_what_is_measured() -> None:
    params = {"DeepCache": {"cache_interval": 3, "cache_branch_id": 0}, "ToMe": {"ratio": 0.5, "max_downsample": 1}}
    candidate = Candidate(Cell("SD1.5", "DDIM", 20), "DeepCache and ToMe", params)
    assert candidate.key == (
        "SD1.5-DDIM-20-DeepCache+ToMe-cache_interval=3,cache_branch_id=0,ratio=0.5,max_downsample=1"
    )


def test_slugs_have_no_blanks_and_differ() -> None:
    slugs = [slug(accelerator.name) for accelerator in SUITING]
    assert slugs == [
        "DeepCache",
        "T-Gate",
        "ToMe",
        "DeepCache+ToMe",
        "DeepCache+T-Gate",
        "DeepCache+T-Gate+ToMe",
    ]


def test_groups_follow_the_candidates_order() -> None:
    seen = dict.fromkeys((candidate.cell, candidate.accelerator) for candidate in whole_matrix(coarse=True))
    assert groups(CELLS, list(REGISTRY)) == list(seen)


def test_two_processes_collect_the_same_in_the_same_order() -> None:
    """Hash seeds differ between processes: an order that hangs on them would break xdist."""
    code = """
import json
from pytest_diffaccel.accelerators.registry import default_registry
from pytest_diffaccel.matrix import PIPES, SCHEDULERS, STEPS, candidates, cells
found = candidates(cells(PIPES, SCHEDULERS, STEPS), list(default_registry()), coarse=True)
print(json.dumps([candidate.key for candidate in found]))
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == [candidate.key for candidate in whole_matrix(coarse=True)]


def test_a_grid_may_be_of_numpys_numbers() -> None:
    """As a method's author writes np.arange and np.linspace; records of them are plain JSON."""
    point: dict[str, Any] = {"interval": np.int64(3), "ratio": np.float32(0.5), "name": 2}
    made = Candidate(CELLS[0], "Mine", {"Mine": point})
    assert json.dumps(made.params) == '{"Mine": {"interval": 3, "ratio": 0.5, "name": 2}}'
    assert made == Candidate(CELLS[0], "Mine", {"Mine": {"interval": 3, "ratio": 0.5, "name": 2}})
