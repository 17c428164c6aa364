"""The search: one case per candidate, then one per group that verifies and records its winners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_diffaccel.matrix import Candidate, Group


def test_search(diffaccel_candidate: Candidate, diffaccel_search: Any) -> None:
    """Measure one candidate: its speed beside the baseline, its quality on the same prompts and seeds."""
    result = diffaccel_search.measure(diffaccel_candidate)
    steps = diffaccel_candidate.cell.steps
    assert result.figures.fired["denoiser_calls"] in (steps, 2 * steps)  # guidance may be a second one


def test_winners(diffaccel_group: Group, diffaccel_search: Any) -> None:
    """Choose a group's winners; after the cell's last group, measure those of all of them again and record them."""
    result = diffaccel_search.find_winners(diffaccel_group)
    assert result.accelerator == diffaccel_group.accelerator
