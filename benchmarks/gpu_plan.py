"""Which runs tell the cost of every kind of step of a full-size pipe.

A kind costs the same in any number of steps, so short runs tell it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pytest_diffaccel.accelerators.composition import default_registry
from pytest_diffaccel.accelerators.deepcache import DOWN_BLOCKS, LAYERS_PER_BLOCK
from pytest_diffaccel.matrix import Candidate, Cell, Params

STEPS = 12
#: Images a call: enough that an unaccelerated call keeps an H200 busy.
BATCHES = {"SD1.5": 8, "SD2.1": 4, "SDXL": 4}
# All four of T-GATE's kinds: planning and gated, each computed and reused.
_GATE = {"gate_step": 6, "sp_interval": 2, "fi_interval": 2, "warm_up": 0}
# With DeepCache every second step: computed and reused attention on full and on shallow steps.
_GATE_TOGETHER = {"gate_step": 6, "sp_interval": 1, "fi_interval": 3, "warm_up": 0}
_BRANCHES_TOGETHER = (0, 1, 3, 6)
_RATIOS = (0.25, 0.5, 0.75)
_DOWNSAMPLES = {"SD1.5": (1, 2, 4), "SD2.1": (1, 2, 4), "SDXL": (2, 4)}


def kind_candidates(pipe: str) -> list[Candidate]:
    """Every branch of DeepCache, every phase of T-GATE, ToMe's ratios, and of each combination some."""
    cell, registry = Cell(pipe, "DDIM", STEPS), default_registry()
    return [Candidate(cell, registry.for_params(params).name, params) for params in _params(pipe)]


def _params(pipe: str) -> Iterator[Params]:
    for branch in range(LAYERS_PER_BLOCK * DOWN_BLOCKS[pipe]):
        yield {"DeepCache": _cache(branch)}
    yield {"T-Gate": _GATE}
    for downsample in _DOWNSAMPLES[pipe]:
        for ratio in _RATIOS:
            yield {"ToMe": {"ratio": ratio, "max_downsample": downsample}}
    first = _DOWNSAMPLES[pipe][0]
    for branch in _BRANCHES_TOGETHER:
        yield {"DeepCache": _cache(branch), "T-Gate": _GATE_TOGETHER}
    for branch in _BRANCHES_TOGETHER[::2]:
        for ratio in _RATIOS[::2]:
            yield {"DeepCache": _cache(branch), "ToMe": {"ratio": ratio, "max_downsample": first}}
        yield {"DeepCache": _cache(branch), "T-Gate": _GATE_TOGETHER, "ToMe": {"ratio": 0.5, "max_downsample": first}}


def _cache(branch: int) -> dict[str, int]:
    return {"cache_interval": 2, "cache_branch_id": branch}
