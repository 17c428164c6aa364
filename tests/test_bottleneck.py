"""Arithmetic by kind of step, and what it says of where an accelerated generation's time goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import CELL, RecordedSearch, deepcache_grid, environment
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pytest_diffaccel import accelerate
from pytest_diffaccel.matrix import Candidate
from pytest_diffaccel.measure.bottleneck import bottleneck
from pytest_diffaccel.measure.flops import flops_by_kind
from pytest_diffaccel.measure.measurement import Block, RunTiming
from pytest_diffaccel.records.contents import Contents, Recorded
from pytest_diffaccel.records.export_rows import export_rows

FLOPS = {"plain": 1000, "full": 1000, "shallow": 100}


def blocks(full_s: float, shallow_s: float, fixed_s: float) -> list[Block]:
    """Two blocks of four steps, half of them shallow."""
    baseline = RunTiming(4 * full_s + fixed_s, (full_s,) * 4, ("plain",) * 4)
    steps = (full_s, shallow_s) * 2
    return [Block(baseline, (RunTiming(sum(steps) + fixed_s, steps, ("full", "shallow") * 2),))] * 2


@pytest.mark.parametrize(
    ("shallow_s", "fixed_s", "bound", "words"),
    [
        (
            0.1,
            0.1,
            "compute",
            "compute-bound: its steps need 55% of the plain pipeline's arithmetic and 55% of its time",
        ),
        (0.9, 0.1, "launch", "launch-bound: its steps need 55% of the plain pipeline's arithmetic and 95% of its time"),
        (0.1, 6.0, "fixed", "capped by the fixed part: 73% of the time, at most 1.7x"),
    ],
)
def test_what_bounds_a_generation(shallow_s: float, fixed_s: float, bound: str, words: str) -> None:
    found = bottleneck(blocks(1.0, shallow_s, fixed_s), FLOPS)
    assert found is not None
    assert (found.bound, found.in_words()) == (bound, words)
    assert found.ceiling == pytest.approx((4 + fixed_s) / fixed_s)


def test_nothing_is_said_without_times_or_counts() -> None:
    assert bottleneck([], FLOPS) is None
    assert bottleneck(blocks(1.0, 0.1, 0.1), {"plain": 1000, "full": 1000}) is None


def test_an_export_tells_what_bounds_a_candidate_whose_arithmetic_was_counted(tmp_path: Path) -> None:
    made = RecordedSearch(tmp_path).measurement(
        Candidate(CELL, "DeepCache", deepcache_grid()[0]), environment(), "winner"
    )
    kinds = dict.fromkeys(made.blocks[0].runs[0].kinds)
    counted = replace(made, flops={"plain": 1000, **{kind: 1000 if "full" in kind else 100 for kind in kinds}})
    rows = export_rows(Contents((Recorded(made, "1"), Recorded(counted, "2")), (), (), {}))
    assert rows[0]["bottleneck"] is None
    assert rows[1]["bottleneck"].startswith("compute-bound: its steps need 55% of the plain pipeline's arithmetic")


def test_methods_save_the_arithmetic_that_they_say(pipeline_of: Callable[..., Any]) -> None:
    def counted(params: dict[str, Any]) -> dict[str, int]:
        with accelerate(pipeline_of("SD1.5"), params, steps=4, guidance_scale=5.0) as generate:
            return dict(flops_by_kind(generate, "red apple", 0))

    plain = counted({})["plain"]
    assert plain > 1e8
    cached = counted({"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}})
    assert cached["DeepCache:full"] == plain
    assert 0 < cached["DeepCache:shallow@0"] < 0.3 * plain
    gated = counted({"T-Gate": {"gate_step": 2, "sp_interval": 1, "fi_interval": 2, "warm_up": 0}})
    assert gated["T-Gate:planning"] == plain
    # Half of the batch, and no cross-attention; then no self-attention either.
    assert gated["T-Gate:gated-reuse"] < gated["T-Gate:gated"] < plain / 2
    merged = counted({"ToMe": {"ratio": 0.5, "max_downsample": 1}})["ToMe:0.5@1"]
    assert 0.5 * plain < merged < plain


def test_a_known_kind_is_not_counted_again(pipeline_of: Callable[..., Any]) -> None:
    params = {"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}}
    with accelerate(pipeline_of("SD1.5"), params, steps=4) as generate:
        every = flops_by_kind(generate, "red apple", 0)
        assert every.keys() == {"DeepCache:full", "DeepCache:shallow@0"}
        known = {"DeepCache:full": 1}
        assert flops_by_kind(generate, "red apple", 0, known) == {"DeepCache:shallow@0": every["DeepCache:shallow@0"]}
        assert flops_by_kind(generate, "red apple", 0, every) == {}


def test_a_count_that_breaks_off_leaves_torch_as_it_was(pipeline_of: Callable[..., Any]) -> None:
    """A counter that stayed on would make every later step of the process many times slower."""
    pipeline = pipeline_of("SD1.5")

    def accident(*_: Any) -> None:
        raise RuntimeError("an accident in the last step")

    with accelerate(pipeline, {}, steps=2) as generate:
        calls = iter((lambda *_: None, accident))
        hook = pipeline.unet.mid_block.register_forward_hook(lambda *given: next(calls)(*given))
        with pytest.raises(RuntimeError, match="an accident"):
            flops_by_kind(generate, "red apple", 0)
        hook.remove()
    assert not _get_current_dispatch_mode_stack()
    assert not torch.nn.modules.module._global_forward_pre_hooks
