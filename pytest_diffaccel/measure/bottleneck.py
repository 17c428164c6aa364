"""What keeps an accelerated generation from being faster: arithmetic, what surrounds it, or what no method touches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_diffaccel.measure.measurement import Block, Bound
from pytest_diffaccel.measure.step_kinds import RunTimes

#: Steps that do their arithmetic at less than this share of an unaccelerated step's rate wait for something else.
_LEAST_EFFICIENCY = 0.75
#: A generation that spends more than this share of its time outside its steps gains little from faster ones.
_MOST_FIXED_SHARE = 0.5


@dataclass(frozen=True)
class Bottleneck:
    """Where the time of an accelerated generation goes.

    Attributes:
        fixed_share: share of its time outside the steps (text encoder, VAE, set-up), 0 to 1.
        flops_share: arithmetic of its steps as a share of the unaccelerated pipeline's, at least 0.
        time_share: time of its steps as a share of the unaccelerated pipeline's, above 0.
        ceiling: speed-up that steps of no cost would give.
    """

    fixed_share: float
    flops_share: float
    time_share: float
    ceiling: float

    @property
    def efficiency(self) -> float:
        """Rate of arithmetic in its steps, as a multiple of that in unaccelerated steps."""
        return self.flops_share / self.time_share

    @property
    def bound(self) -> Bound:
        """``"fixed"``: capped by what lies outside the steps; ``"launch"``: steps are short of arithmetic for the time
        they take, which goes to launching and moving; ``"compute"``: their time fell as their arithmetic did.
        """
        if self.fixed_share > _MOST_FIXED_SHARE:
            return "fixed"
        return "compute" if self.efficiency >= _LEAST_EFFICIENCY else "launch"

    def in_words(self) -> str:
        """One line for a report."""
        if self.bound == "fixed":
            return f"capped by the fixed part: {self.fixed_share:.0%} of the time, at most {self.ceiling:.1f}x"
        return (
            f"{self.bound}-bound: its steps need {self.flops_share:.0%} of the plain pipeline's arithmetic and "
            f"{self.time_share:.0%} of its time"
        )


def bottleneck(blocks: Sequence[Block], flops: Mapping[str, int]) -> Bottleneck | None:
    """What bounds a measured candidate; None where it was not timed, or the arithmetic of a kind was not counted.

    Args:
        blocks: its timed blocks.
        flops: floating-point operations of a step by kind, the unaccelerated pipeline's kinds included.
    """
    runs = [run for block in blocks for run in (block.baseline, *block.runs)]
    if not blocks or not flops.keys() >= {kind for run in runs for kind in run.kinds}:
        return None
    baseline = RunTimes.of([(block.baseline,) for block in blocks])
    candidate = RunTimes.of([block.runs for block in blocks])
    plain_s, own_s = float(baseline.steps_seconds()), float(candidate.steps_seconds())
    fixed_s = float(candidate.fixed_seconds())
    return Bottleneck(
        fixed_share=fixed_s / (fixed_s + own_s),
        flops_share=_flops(candidate, flops) / _flops(baseline, flops),
        time_share=own_s / plain_s,
        ceiling=(float(baseline.fixed_seconds()) + plain_s) / fixed_s,
    )


def _flops(times: RunTimes, flops: Mapping[str, int]) -> float:
    return sum(count * flops[kind] for kind, count in times.counts.items())
