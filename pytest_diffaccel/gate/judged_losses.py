"""Is a case still as good? LPIPS to this run's unaccelerated images, beside what the reference lost on the same ones.

Prompts, seeds and start noise are those of the reference, so nothing is sampled: on one build the losses are equal to
the last digit, and nothing is left to decide. What is left otherwise is rounding, which another build does otherwise.
Its size is measured in two ways, of which the one that tells more counts: by the same case from start noise that is one
unit in the last place larger (an A/A control), and by how unequally the samples' losses moved since the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from pytest_diffaccel.gate.verdict import Finding, Status, percent
from pytest_diffaccel.words import counted

# A build rounds every operation anew, not the start noise alone: taken for this many such controls, independent ones.
_ROUNDINGS = 16
# Fewer samples tell nothing of how changes vary.
_LEAST_PAIRS = 4
# Chance that a loss that matters is called none.
_MISS_RATE = 0.025
# Below this LPIPS nobody sees a difference, whatever its ratio.
_INVISIBLE = 1e-4
# References are kept to so many digits, and means in golden to so many; what differs by less is equal.
_EQUAL, _EQUAL_MEAN = 2e-9, 1e-6


@dataclass(frozen=True)
class Losses:
    """LPIPS of one case's samples, in the same order.

    Attributes:
        now: of this run.
        control: of this run, from start noise one unit in the last place larger.
        then: the reference's; one per sample, or their mean alone.
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

    @property
    def is_equal(self) -> bool:
        """Whether every sample lost what it did, or their mean where no more is known: all was rounded alike."""
        if len(self.then) == 1:
            return abs(self.change) < _EQUAL_MEAN
        return len(self.then) == len(self.now) and bool(np.allclose(self.now, self.then, rtol=0.0, atol=_EQUAL))

    def half_width(self, error_rate: float) -> float:
        """How far the mean moves by rounding alone, with so small a chance of more, to one side.

        Both measures have half of that chance each. The paired one, Student's of the samples' changes, needs the
        reference's sample by sample.

        Args:
            error_rate: above 0, below 0.5.
        """
        by_control = float(stats.norm.isf(error_rate / 2)) * self.floor
        if len(self.then) != len(self.now) or len(self.now) < _LEAST_PAIRS:
            return by_control
        changes = np.array(self.now) - np.array(self.then)
        error = float(changes.std(ddof=1)) / math.sqrt(len(changes))
        return min(by_control, float(stats.t.isf(error_rate / 2, len(changes) - 1)) * error)


def quality_finding(losses: Losses, smallest: float, false_alarm_rate: float) -> Finding:
    """Worse by what matters and by more than rounding explains; or not.

    Args:
        losses: of the case.
        smallest: the smallest relative increase of the mean LPIPS that matters.
        false_alarm_rate: of this case.
    """
    then, now = float(np.mean(losses.then)), float(np.mean(losses.now))
    matters = max(smallest * then, _INVISIBLE)
    if not math.isfinite(now):
        return Finding("quality", "regressed", f"LPIPS is {now}: the images are broken")
    half = losses.half_width(0.05 / 2)
    text = f"LPIPS {now:.4f} instead of {then:.4f} (rounding +-{half:.4f}, {counted(len(losses.now), 'sample')})"
    if losses.is_equal:
        return Finding("quality", "ok", f"{percent(0.0)}: {text}; equal to the last digit", 0.0, (0.0, 0.0))
    status, why = _judge(losses, matters, false_alarm_rate)
    if then <= 0:
        return Finding("quality", status, text + why)
    ratio, low, high = ((losses.change + part) / then for part in (0.0, -half, half))
    text = f"{percent(ratio)} [{percent(low)}, {percent(high)}]: {text}{why}"
    return Finding("quality", status, text, ratio, (low, high))


def _judge(losses: Losses, matters: float, false_alarm_rate: float) -> tuple[Status, str]:
    change, sure = losses.change, losses.half_width(false_alarm_rate)
    if change > matters:
        if change > sure:
            return "regressed", ""
        return "inconclusive", "; as much as rounding alone may change it"
    if change + losses.half_width(_MISS_RATE) > matters:
        return "inconclusive", "; rounding alone may hide a loss that matters"
    if change < -max(matters, sure):
        return "improved", ""
    return "ok", ""


def hidden_loss(losses: Losses, smallest: float) -> str:
    """Where another build's rounding will hide a loss that matters, so in words; empty where it will not.

    By the A/A control: what another build rounds otherwise is not known before it runs. On the same build pictures are
    the same, and every loss shows.

    Args:
        losses: of the case.
        smallest: the smallest relative increase of the mean LPIPS that matters.
    """
    now, count = float(np.mean(losses.now)), len(losses.now)
    half = float(stats.norm.isf(_MISS_RATE / 2)) * losses.floor
    if now <= 0 or half <= max(smallest * now, _INVISIBLE):
        return ""
    needed = math.ceil(count * (half / max(smallest * now, _INVISIBLE)) ** 2)
    return (
        f"under another build rounding may hide a loss of {half / now:.0%} at {counted(count, 'sample')}; one of "
        f"{smallest:.0%} shows with golden of --num-samples {needed} or more"
    )


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
    scale = float(np.mean(before))
    if scale <= 0:
        return "the recorded pictures say nothing: record the reference again"
    moved = float(np.mean(np.abs(after - before))) / scale
    if moved <= tolerance:
        return ""
    return (
        "the unaccelerated pipeline draws other pictures than were recorded: their LPIPS to grey and to other seeds "
        f"moved by {moved:.0%}"
    )
