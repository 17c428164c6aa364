"""Why a winner won, in words: who contended, by how much, and which candidates were passed over and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pytest_diffaccel.matrix import format_params
from pytest_diffaccel.measure.measurement import Interval
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.html.content.candidate_rows import Row
from pytest_diffaccel.report.html.content.findings import Findings
from pytest_diffaccel.search.predict.reach import reaches

# Contenders that are named, and reasons.
_NAMED, _REASONS = 3, 4
# What differs from candidate to candidate in a reason.
_FIGURE = re.compile(r"\d+(?:\.\d+)?x?")


def explain(key: GoldenKey, found: Findings, max_loss: float) -> list[str]:
    """Lines on a key.

    Args:
        key: the target in question.
        found: what the store holds of its cell.
        max_loss: LPIPS above which a candidate cannot win.

    Raises:
        ValueError: when the store holds nothing of the key's group.
    """
    rows = [row for row in found.rows if row.accelerator == key.accelerator]
    if not rows:
        raise ValueError(f"the store holds no candidate of {key.cell} {key.accelerator}")
    measured = [row for row in rows if row.figures is not None]
    lines = [f"{key.cell.pipe} {key.cell.scheduler} {key.cell.steps} steps, {key.accelerator}, {key.target:g}x"]
    entry = found.record.entries.get(key)
    lines += _outcome(entry)
    if entry is None and (earlier := found.entries.get(key)):
        lines.append(f"golden keeps an earlier record: {earlier.status}, {format_params(earlier.params) or 'nothing'}")
    fast = sorted((row for row in measured if reaches(_speedup(row), key.target)), key=_loss)
    lines += _contenders(entry, fast, max_loss)
    slow = [row for row in measured if row not in fast]
    if slow:
        best = max(slow, key=lambda row: _speedup(row).value)
        lines.append(f"not surely fast enough: {len(slow)}; the fastest of them is {_in_words(best)}")
    lines += _unmeasured([row for row in rows if row.figures is None])
    return lines


def _outcome(entry: GoldenEntry | None) -> list[str]:
    if entry is None:
        return ["undecided: it is not known well enough whether a candidate reaches it"]
    if entry.status != "met":
        why = "no candidate is surely fast enough" if entry.reason == "speed" else "the fast ones lose too much quality"
        return [f"unattainable: {why}"]
    lines = [f"winner: {format_params(entry.params)}"]
    if entry.lpips is not None:
        chosen = f", {entry.selection_lpips:.3f} on those that it was chosen on" if entry.selection_lpips else ""
        lines.append(f"  {entry.speedup:.2f}x, LPIPS {entry.lpips:.3f} on {entry.num_samples} pictures{chosen}")
    if entry.fewer_steps is not None:
        word = "more" if entry.beats_fewer_steps else "less"
        rival = entry.fewer_steps
        lines.append(f"  the plain pipeline with {rival.steps} steps is as fast and loses {word}: {rival.lpips:.3f}")
    return lines


def _contenders(entry: GoldenEntry | None, fast: Sequence[Row], max_loss: float) -> list[str]:
    if not fast:
        return []
    params = format_params(entry.params) if entry is not None else ""
    others = [row for row in fast if row.params != params and _loss(row) <= max_loss]
    bad = sum(_loss(row) > max_loss for row in fast)
    lines = [
        f"surely fast enough: {len(fast)}" + (f"; {bad} of them cannot win: LPIPS above {max_loss:g}" if bad else "")
    ]
    lines += [f"  contender: {_in_words(row)}" for row in others[:_NAMED]]
    return lines + ([f"  and {len(others) - _NAMED} more"] if len(others) > _NAMED else [])


def _unmeasured(rows: Sequence[Row]) -> list[str]:
    """Of what was passed over and what failed, how many and why."""
    lines = []
    for verdict, words in (("skipped", "passed over"), ("failed", "failed")):
        own = [row for row in rows if row.verdict == verdict]
        if own:
            reasons = Counter(_FIGURE.sub("N", row.reason) for row in own)
            example = {_FIGURE.sub("N", row.reason): row.reason for row in own}
            lines.append(f"{words} without being measured: {len(own)}")
            lines += [f"  {count} as this one: {example[reason]}" for reason, count in reasons.most_common(_REASONS)]
    return lines


def _in_words(row: Row) -> str:
    speedup = _speedup(row)
    return f"{row.params}: {speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}], LPIPS {_loss(row):.3f}"


def _speedup(row: Row) -> Interval:
    if row.figures is None:
        raise ValueError(f"{row.key} was not measured")
    return row.figures.speedup


def _loss(row: Row) -> float:
    if row.figures is None:
        raise ValueError(f"{row.key} was not measured")
    return row.figures.lpips.value
