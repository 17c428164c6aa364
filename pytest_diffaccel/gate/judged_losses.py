"""Is a case still as good? LPIPS to this run's unaccelerated images, beside what the reference lost on the same ones;
and any other metric that was asked for, beside what it said of the reference's.

Prompts, seeds and start noise are those of the reference, so nothing is sampled: on one build the values are equal to
the last digit, and nothing is left to decide. What is left otherwise is rounding, which another build does otherwise.
Its size is measured in two ways, of which the one that tells more counts: by the same case from start noise that is one
unit in the last place larger (an A/A control), and by how unequally the samples' values moved since the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from pytest_diffaccel.gate.verdict import Finding, Status, percent
from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.lpips import Lpips
from pytest_diffaccel.words import counted

# A build rounds every operation anew, not the start noise alone: taken for this many such controls, independent ones.
_ROUNDINGS = 16
# Fewer samples tell nothing of how changes vary.
_LEAST_PAIRS = 4
# Chance that a loss that matters is called none.
_MISS_RATE = 0.025
# Below this LPIPS nobody sees a difference, whatever its ratio.
_INVISIBLE = 1e-4
# References are kept to so many digits, and means in golden to so many of LPIPS, to six significant ones of others;
# what differs by less is equal.
_EQUAL, _EQUAL_MEAN, _EQUAL_SHARE = 2e-9, 1e-6, 1e-5
_LPIPS = Lpips()


@dataclass(frozen=True)
class Scores:
    """What a metric says of one case's samples, in the same order.

    Attributes:
        now: of this run.
        control: of this run, from start noise one unit in the last place larger; none where all is equal to ``then``.
        then: the reference's; one per sample, their mean alone, or none where nothing is known.
        metric: which one.
    """

    now: tuple[float, ...]
    control: tuple[float, ...]
    then: tuple[float, ...]
    metric: Metric = _LPIPS

    @property
    def change(self) -> float:
        """Of the mean, above 0 where it rose."""
        return float(np.mean(self.now) - np.mean(self.then))

    @property
    def loss(self) -> float:
        """By how much the mean became worse; below 0 where it became better."""
        return -self.change if self.metric.higher_is_better else self.change

    def matters(self, smallest: float, mean: float) -> float:
        """The smallest loss of the mean that matters; 0 where none can be told.

        Args:
            smallest: as a share of the mean.
            mean: that mean.
        """
        return max(smallest * abs(mean), _INVISIBLE if isinstance(self.metric, Lpips) else 0.0)

    @property
    def subject(self) -> str:
        """The metric's name as findings have it (:attr:`.Finding.metric`): empty for LPIPS."""
        return "" if self.metric.name == _LPIPS.name else self.metric.name

    @property
    def title(self) -> str:
        """The metric's name, as texts have it."""
        return self.subject or "LPIPS"

    def shown(self, value: float) -> str:
        """A value in words: ``"0.0412"`` of LPIPS, ``"31.4159 dB"`` of another."""
        return f"{value:.6g} {self.metric.unit}".rstrip() if self.subject else f"{value:.4f}"

    @property
    def floor(self) -> float:
        """Standard deviation of the mean's change, if nothing but rounding differs."""
        moved = np.array(self.control) - np.array(self.now)
        return float(np.sqrt(_ROUNDINGS * np.mean(moved**2) / len(moved)))

    @property
    def is_equal(self) -> bool:
        """Whether every sample says what it did, or their mean where no more is known: all was rounded alike."""
        if len(self.then) == 1:
            tolerance = _EQUAL_SHARE * abs(self.then[0]) if self.subject else _EQUAL_MEAN
            return abs(self.change) <= tolerance
        return all_equal(self.now, self.then)

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


def quality_finding(scores: Scores, smallest: float, false_alarm_rate: float) -> Finding:
    """Worse by what matters and by more than rounding explains; or not.

    Args:
        scores: of the case.
        smallest: the smallest loss of the metric's mean that matters, as a share of it.
        false_alarm_rate: of this metric of this case.
    """
    then, now = float(np.mean(scores.then)), float(np.mean(scores.now))
    matters = scores.matters(smallest, then)
    found = Finding("quality", "ok", "", metric=scores.subject)
    if not math.isfinite(now):
        return replace(found, status="regressed", text=f"{scores.title} is {now}: the images are broken")
    text = f"{scores.title} {scores.shown(now)} instead of {scores.shown(then)}"
    samples = counted(len(scores.now), "sample")
    if scores.is_equal:
        equal = f"{percent(0.0)}: {text} ({samples}); equal to the last digit"
        return replace(found, text=equal, change=0.0, change_ci95=(0.0, 0.0))
    half = scores.half_width(0.05 / 2)
    text += f" (rounding +-{half:.4f}, {samples})"
    if matters == 0:
        why = f"{text}; {smallest:.1%} of the recorded mean is nothing, so what matters is not known"
        fix = f"another metric (--gate-quality): the recorded {scores.title} is 0"
        return replace(found, status="inconclusive", text=why, fix=fix)
    status, why = _judge(scores, matters, false_alarm_rate)
    if then == 0:
        return replace(found, status=status, text=text + why)
    ratio, low, high = ((scores.change + part) / abs(then) for part in (0.0, -half, half))
    text = f"{percent(ratio)} [{percent(low)}, {percent(high)}]: {text}{why}"
    return replace(found, status=status, text=text, change=ratio, change_ci95=(low, high))


def _judge(scores: Scores, matters: float, false_alarm_rate: float) -> tuple[Status, str]:
    loss, sure = scores.loss, scores.half_width(false_alarm_rate)
    if loss > matters:
        if loss > sure:
            return "regressed", ""
        return "inconclusive", "; as much as rounding alone may change it"
    if loss + scores.half_width(_MISS_RATE) > matters:
        return "inconclusive", "; rounding alone may hide a loss that matters"
    if loss < -max(matters, sure):
        return "improved", ""
    return "ok", ""


def hidden_loss(scores: Scores, smallest: float) -> str:
    """Where another build's rounding will hide a loss that matters, so in words; empty where it will not.

    By the A/A control: what another build rounds otherwise is not known before it runs. On the same build pictures are
    the same, and every loss shows.

    Args:
        scores: of the case.
        smallest: the smallest loss of the metric's mean that matters, as a share of it.
    """
    now, count = abs(float(np.mean(scores.now))), len(scores.now)
    half, matters = float(stats.norm.isf(_MISS_RATE / 2)) * scores.floor, scores.matters(smallest, now)
    if now == 0 or half <= matters:
        return ""
    needed = math.ceil(count * (half / matters) ** 2)
    of_metric = f" of {scores.subject}" if scores.subject else ""
    return (
        f"under another build rounding may hide a loss{of_metric} of {half / now:.0%} at {counted(count, 'sample')}; "
        f"one of {smallest:.0%} shows with golden of --num-samples {needed} or more"
    )


def not_recorded(metric: str, identities: Sequence[str], identity: str) -> str:
    """Why a metric's values cannot be compared with its references', in words.

    Args:
        metric: its name.
        identities: of the values that the references hold, oldest first.
        identity: of this run's.
    """
    if not identities:
        return f"the references hold no {metric}"
    if identity not in identities:
        return f"the references hold that of other weights: {identities[-1]} -> {identity}"
    return "the references hold that of other samples"


def explain_by_pictures(finding: Finding, *, are_known: bool) -> Finding:
    """Ok instead of improved where nothing tells whether the unaccelerated pictures are still the recorded ones.

    A winner's loss also falls when the unaccelerated pipeline breaks, and that is no improvement.
    """
    if finding.status != "improved" or are_known:
        return finding
    why = "no recorded pictures of the baseline: whether the winner became better or the baseline broke is not known"
    return replace(finding, status="ok", text=f"{finding.text}; {why}")


def all_equal(now: Sequence[float], then: Sequence[float]) -> bool:
    """Whether distances of pictures are what they were to the last digit that is kept, all of them."""
    return len(then) == len(now) and bool(np.allclose(now, then, rtol=0.0, atol=_EQUAL))


def pictures_moved(now: Sequence[float], then: Sequence[float]) -> float:
    """By how much the unaccelerated pipeline draws otherwise than it drew: mean relative change, at least 0.

    Args:
        now: LPIPS of its pictures to things that do not change, in this run.
        then: the recorded ones, in the same order; 0 is returned where they are not as many.
    """
    if len(now) != len(then):
        return 0.0
    before, after = np.array(then), np.array(now)
    scale = float(np.mean(before))
    return float(np.mean(np.abs(after - before))) / scale if scale > 0 else math.inf


def same_pictures(moved: float, tolerance: float) -> str:
    """Whether the unaccelerated pipeline still draws what it drew; in words when it does not.

    Args:
        moved: of :func:`pictures_moved`.
        tolerance: what of it is put down to rounding.
    """
    if moved <= tolerance:
        return ""
    if math.isinf(moved):
        return "the recorded pictures say nothing: record the reference again"
    return (
        "the unaccelerated pipeline draws other pictures than were recorded: their LPIPS to grey and to other seeds "
        f"moved by {moved:.0%}"
    )
