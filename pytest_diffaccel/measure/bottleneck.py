"""What keeps an accelerated generation from being faster: the GPU's work, its host, or what no method touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_diffaccel.measure.busy_clock import LAUNCH_BOUND_SHARE
from pytest_diffaccel.measure.measurement import Block, Bound
from pytest_diffaccel.measure.step_kinds import RunTimes

#: A generation that spends more than this share of its time outside its steps gains little from faster ones.
_MOST_FIXED_SHARE = 0.5


@dataclass(frozen=True)
class Bottleneck:
    """Where the time of an accelerated generation goes.

    Attributes:
        fixed_share: share of its time outside the steps (text encoder, VAE, set-up), 0 to 1.
        busy_share: share of its time during which the GPU works, 0 to 1.
        ceiling: speed-up that steps of no cost would give.
    """

    fixed_share: float
    busy_share: float
    ceiling: float

    @property
    def bound(self) -> Bound:
        """``"fixed"``: capped by what lies outside the steps; ``"launch"``: the GPU waits for the host to launch its
        kernels; ``"compute"``: it does not.
        """
        if self.fixed_share > _MOST_FIXED_SHARE:
            return "fixed"
        return "launch" if self.busy_share < LAUNCH_BOUND_SHARE else "compute"

    def in_words(self) -> str:
        """One line for a report."""
        if self.bound == "fixed":
            return f"capped by the fixed part: {self.fixed_share:.0%} of the time, at most {self.ceiling:.1f}x"
        return f"{self.bound}-bound: the GPU works for {self.busy_share:.0%} of a run"


def bottleneck(blocks: Sequence[Block], busy_share: float | None) -> Bottleneck | None:
    """What bounds a measured candidate; None where it was not timed, or nothing tells what the GPU did.

    Args:
        blocks: its timed blocks.
        busy_share: share of a run during which the GPU works.
    """
    if not blocks or busy_share is None:
        return None
    baseline = RunTimes.of([(block.baseline,) for block in blocks])
    candidate = RunTimes.of([block.runs for block in blocks])
    plain_s, own_s = float(baseline.steps_seconds()), float(candidate.steps_seconds())
    fixed_s = float(candidate.fixed_seconds())
    return Bottleneck(
        fixed_share=fixed_s / (fixed_s + own_s),
        busy_share=busy_share,
        ceiling=(float(baseline.fixed_seconds()) + plain_s) / fixed_s,
    )
