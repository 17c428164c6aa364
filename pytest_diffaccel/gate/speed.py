"""Is a case still as fast? Timed in blocks with the unaccelerated pipeline, look by look, until that is certain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from pytest_diffaccel.gate.case_plan import SURELY
from pytest_diffaccel.gate.figures import Figure
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import IMPROVED, OK, OPEN, REGRESSED, Array, Design, Estimate, robust_mean
from pytest_diffaccel.gate.verdict import Finding, Status, percent
from pytest_diffaccel.measure.measurement import Block
from pytest_diffaccel.words import counted

# Slowdowns that are spoken of: a logarithm, and the share of runs that show them.
_LARGEST_SHOWN = math.log(3.0)
_CONFIDENCE = 0.95
_STATUS: dict[int, Status] = {OK: "ok", REGRESSED: "regressed", IMPROVED: "improved", OPEN: "inconclusive"}


@dataclass(frozen=True)
class Timed:
    """Everything timed of a case.

    Attributes:
        figures: in order, at least one.
        blocks: all of them.
        decision: of the last look.
    """

    figures: tuple[Figure, ...]
    blocks: tuple[Block, ...]
    decision: int

    @property
    def log_speedups(self) -> Array:
        """One per figure."""
        return np.array([figure.log_speedup for figure in self.figures])

    @property
    def baseline_s(self) -> float:
        """Time of an undisturbed unaccelerated run: the median of the figures'."""
        return float(np.median([figure.baseline_s for figure in self.figures]))

    @property
    def figure_sd(self) -> float:
        """Standard deviation of a figure's logarithm, from the trimmed mean's error."""
        return float(robust_mean(self.log_speedups).error) * math.sqrt(len(self.figures))


def time_until_certain(
    blocks: Iterator[Block],
    size: int,
    design: Design,
    reference: Reference | None,
    *,
    figure_of: Callable[[Sequence[Block]], Figure] = Figure.from_blocks,
    to_the_end: bool = False,
) -> Timed:
    """Take blocks until a look decides, or the design's last look is over.

    Args:
        blocks: makes and times one block each time; at least as many as the design may need.
        size: blocks per figure.
        design: when to look.
        reference: what to compare with; None where there is nothing yet.
        figure_of: makes a figure of ``size`` blocks.
        to_the_end: take all figures, and look once: to record a reference.
    """
    taken: list[Block] = []
    figures: list[Figure] = []
    decision = OPEN
    for block in blocks:
        taken.append(block)
        if len(taken) % size:
            continue
        figures.append(figure_of(taken[-size:]))
        if len(figures) == design.most or (len(figures) in design.looks and not to_the_end):
            values = np.array([figure.log_speedup for figure in figures])
            decision = int(design.decide(values, reference.estimate)) if reference else OPEN
            if decision != OPEN or len(figures) == design.most:
                break
    return Timed(tuple(figures), tuple(taken), decision)


def speed_finding(timed: Timed, design: Design, reference: Reference, words: str = "") -> Finding:
    """What the timed figures say, in words.

    Args:
        timed: the case's.
        design: that it was timed by.
        reference: what it is compared with.
        words: what the figures are of, where that is not wall time (:attr:`.Clock.words`).
    """
    values = timed.log_speedups
    estimate = design.change(values, reference.estimate)
    change = float(estimate.mean)
    low, high = (float(end) for end in design.interval(values, reference.estimate))
    status = _STATUS[timed.decision]
    ratios = math.expm1(change), (math.expm1(low), math.expm1(high))
    text = (
        f"{math.exp(reference.log_speedup + change):.3f}x instead of {math.exp(reference.log_speedup):.3f}x{words} "
        f"({percent(ratios[0])} [{percent(ratios[1][0])}, {percent(ratios[1][1])}] of {reference.source}, "
        f"{counted(len(timed.blocks), 'block')})"
    )
    if status == "inconclusive":
        text += f"; neither a slowdown nor its absence is certain: at this noise {_shown(design, estimate)}"
    return Finding("speed", status, text, ratios[0], ratios[1])


def _shown(design: Design, change: Estimate) -> str:
    """Which slowdowns would be shown by a change that is known as well as this one."""
    error, df = float(change.error), float(change.df)

    def power(log_slowdown: float) -> float:
        return replace(design, smallest=log_slowdown).power_at(error, df)

    text = f"a slowdown of {math.expm1(design.smallest):.0%} is shown in {power(design.smallest):.0%} of runs"
    slowdowns = map(float, np.geomspace(0.002, _LARGEST_SHOWN, 200))
    shown = next((slowdown for slowdown in slowdowns if power(slowdown) >= SURELY), None)
    if shown is None:
        return f"{text}, and not even one of {math.expm1(_LARGEST_SHOWN):.0%} in {SURELY:.0%}"
    return f"{text}, one of {math.expm1(shown):.0%} in {SURELY:.0%}"


def first_finding(timed: Timed, words: str) -> Finding:
    """What is recorded where nothing was before."""
    estimate = robust_mean(timed.log_speedups)
    half = float(stats.t.isf((1 - _CONFIDENCE) / 2, estimate.df) * estimate.error)
    ratio = math.exp(float(estimate.mean))
    blocks = counted(len(timed.blocks), "block")
    return Finding("speed", "ok", f"{ratio:.3f}x{words}, known to {math.expm1(half):.1%} ({blocks})")


def explain_by_times(finding: Finding, timed: Timed, reference: Reference, words: str = "") -> tuple[Finding, str]:
    """Whether a faster speed-up is the winner's doing: absolute times of unaccelerated runs, then and now.

    A speed-up also rises when the unaccelerated pipeline becomes slower, and that is no improvement.

    Returns:
        The finding, ok instead of improved where the winner did not become faster; and a note on the baseline's time,
        empty where nothing is known of it.
    """
    if reference.baseline_s is None:
        if finding.status != "improved":
            return finding, ""
        why = "no recorded time of the baseline: whether the winner became faster or the baseline slower is not known"
        return _as_ok(finding, why), ""
    slower = math.log(timed.baseline_s / reference.baseline_s)
    by = percent(math.expm1(slower))
    note = f"an unaccelerated run takes {timed.baseline_s:.3f} s{words}, {by} of the recorded time"
    if finding.status == "improved" and finding.change is not None and slower > math.log1p(finding.change) / 2:
        why = (
            f"but the unaccelerated pipeline became {percent(math.expm1(slower))} slower: no improvement of the winner"
        )
        return _as_ok(finding, why), note
    return finding, note


def slower_baseline(timed: Timed, reference: Reference, smallest: float) -> Finding | None:
    """A warning where the unaccelerated pipeline itself takes longer than recorded, by what matters; else None.

    Every winner may be as much slower then, and no speed-up shows it.

    Args:
        timed: the baseline's, by device time.
        reference: its recorded time.
        smallest: the smallest slowdown that matters, as a fraction.
    """
    if reference.baseline_s is None:
        return None
    slower = timed.baseline_s / reference.baseline_s - 1
    if slower <= smallest:
        return None
    text = (
        f"an unaccelerated run takes {timed.baseline_s:.3f} s of device time instead of {reference.baseline_s:.3f} s "
        f"({percent(slower)}): its kernels, or the clocks or power limit of this GPU"
    )
    return Finding("baseline", "warning", text, -slower / (1 + slower))


def _as_ok(finding: Finding, why: str) -> Finding:
    return Finding(finding.subject, "ok", f"{finding.text}; {why}", finding.change, finding.change_ci95)
