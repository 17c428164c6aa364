"""Is a case still as good? LPIPS to this run's unaccelerated images, beside what the reference lost on the same ones.

Prompts, seeds and start noise are those of the reference, so nothing is sampled: on one build the losses are equal to
the last digit. What is left is rounding, which another build does otherwise, and its size is measured in every run: the
same case from start noise that is one unit in the last place larger (an A/A control).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from pytest_diffaccel.gate.verdict import Finding, Status, percent

# A build rounds every operation anew, not the start noise alone: taken for this many such controls, independent ones.
_ROUNDINGS = 16
# Below this LPIPS nobody sees a difference, whatever its ratio.
_INVISIBLE = 1e-4


@dataclass(frozen=True)
class Losses:
    """LPIPS of one case's samples, in the same order.

    Attributes:
        now: of this run.
        control: of this run, from start noise one unit in the last place larger.
        then: the reference's; one a sample, or their mean alone.
    """

    now: tuple[float, ...]
    control: tuple[float, ...]
    then: tuple[float, ...]

    @property
    def change(self) -> float:
        """Of the mean."""
        return float(np.mean(self.now) - np.mean(self.then))

    @property
    def floor(self) -> float:
        """Standard deviation of the mean's change, if nothing but rounding differs."""
        moved = np.array(self.control) - np.array(self.now)
        return float(np.sqrt(_ROUNDINGS * np.mean(moved**2) / len(moved)))


def quality_finding(losses: Losses, smallest: float, false_alarm_rate: float) -> Finding:
    """Worse by what matters and by more than rounding explains; or not.

    Args:
        losses: of the case.
        smallest: the smallest relative increase of the mean LPIPS that matters.
        false_alarm_rate: of this case.
    """
    then, now = float(np.mean(losses.then)), float(np.mean(losses.now))
    matters = max(smallest * then, _INVISIBLE)
    sure = float(stats.norm.isf(false_alarm_rate)) * losses.floor
    if not math.isfinite(now):
        return Finding("quality", "regressed", f"LPIPS is {now}: the images are broken")
    status, why = _judge(losses.change, matters, sure, losses.floor)
    half = 1.96 * losses.floor
    text = f"LPIPS {now:.4f} instead of {then:.4f} (noise floor {losses.floor:.4f}, {len(losses.now)} samples){why}"
    if then <= 0:
        return Finding("quality", status, text)
    ratio, low, high = ((losses.change + part) / then for part in (0.0, -half, half))
    return Finding("quality", status, f"{percent(ratio)} [{percent(low)}, {percent(high)}]: {text}", ratio, (low, high))


def _judge(change: float, matters: float, sure: float, floor: float) -> tuple[Status, str]:
    if change > matters:
        if change > sure:
            return "regressed", ""
        return "inconclusive", "; as much as rounding alone may change it"
    if change + 2 * floor > matters:
        return "inconclusive", "; rounding alone may hide a loss that matters"
    if change < -max(matters, sure):
        return "improved", ""
    return "ok", ""


def explain_by_pictures(finding: Finding, *, are_known: bool) -> Finding:
    """Ok instead of improved where nothing tells whether the unaccelerated pictures are still the recorded ones.

    A winner's loss also falls when the unaccelerated pipeline breaks, and that is no improvement.
    """
    if finding.status != "improved" or are_known:
        return finding
    why = "no recorded pictures of the baseline: whether the winner became better or the baseline broke is not known"
    return replace(finding, status="ok", text=f"{finding.text}; {why}")


def same_pictures(now: Sequence[float], then: Sequence[float], tolerance: float) -> str:
    """Whether the unaccelerated pipeline still draws what it drew; in words when it does not.

    Args:
        now: LPIPS of its pictures to things that do not change, in this run.
        then: the recorded ones, in the same order.
        tolerance: mean relative change that is put down to rounding.
    """
    if len(now) != len(then):
        return ""
    before, after = np.array(then), np.array(now)
    moved = float(np.mean(np.abs(after - before)) / np.mean(before))
    if moved <= tolerance:
        return ""
    return (
        "the unaccelerated pipeline draws other pictures than were recorded: their LPIPS to grey and to other seeds "
        f"moved by {moved:.0%}"
    )
