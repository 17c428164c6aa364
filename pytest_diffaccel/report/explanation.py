"""Why a winner won, in words: who contended, by how much, and which candidates were passed over and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pytest_diffaccel.matrix import format_params, spaced_params
from pytest_diffaccel.records.environment import differences
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.html.content.candidate_rows import Row, RowFigures
from pytest_diffaccel.report.html.content.findings import Findings, decided_by
from pytest_diffaccel.report.html.content.material import Material
from pytest_diffaccel.report.winners import (
    figures,
    interval_text,
    metrics_text,
    over_eager_text,
    said_of,
    stack_notes,
    terms_text,
    why_unattainable,
)
from pytest_diffaccel.rules import DIFFBENCH
from pytest_diffaccel.search.predict.reach import may_reach, reaches
from pytest_diffaccel.words import counted

# Contenders that are named, and reasons.
_NAMED, _REASONS = 3, 4
# What differs from candidate to candidate in a reason.
_FIGURE = re.compile(r"\d+(?:\.\d+)?x?")


def explain(key: GoldenKey, found: Findings, material: Material, store: str) -> list[str]:
    """Lines on a key; the last ones tell whether golden's record says the same.

    Args:
        key: the target in question.
        found: what the store holds of its cell.
        material: what that was found in.
        store: what the store is called.

    Raises:
        ValueError: when the store holds nothing of the key's group.
    """
    rows = [row for row in found.rows if row.accelerator == key.accelerator]
    if not rows:
        raise ValueError(f"the store holds no candidate of {key.cell} {key.accelerator}")
    if (won := found.record.winners.get(key.accelerator)) is not None:
        found = replace(found, quality=decided_by([won], material.quality))  # another may have decided other groups
    measured = [(row, row.figures) for row in rows if row.figures is not None]
    lines = [key.in_words]
    entry = found.record.entries.get(key)
    lines += _outcome(entry) if entry is not None else [_undecided(key, measured)]
    if entry is not None and (over := over_eager_text(entry, found.record.described)):
        lines.append(f"  {over}")
    quality, known = found.quality, found.record.best_known
    by_mean = entry is not None and entry.rule == DIFFBENCH
    fast = [
        pair
        for pair in measured
        if (pair[1].speedup.value >= key.target if by_mean else reaches(pair[1].speedup, key.target))
    ]
    barred = found.record.barred
    fast.sort(key=lambda pair: quality.cost(known[pair[0].key]))
    lines += _contenders(entry, [pair for pair in fast if pair[0].key not in barred], found)
    out = [pair for pair in fast if pair[0].key in barred]
    lines += [f"  cannot win: {_in_words(*pair, found)}; it {barred[pair[0].key]}" for pair in out]
    slow = [pair for pair in measured if pair not in fast]
    if slow:
        best = max(slow, key=lambda pair: pair[1].speedup.value)
        surely = "fast enough in the mean" if by_mean else "surely fast enough"
        lines.append(f"not {surely}: {len(slow)}; the fastest of them is {_in_words(*best, found)}")
    lines += _unmeasured([row for row in rows if row.figures is None])
    lines += stack_notes(found.record.described)[:1]
    return [*lines, f"all of this is what the last search found that used {store}", _in_golden(key, found, material)]


def _in_golden(key: GoldenKey, found: Findings, material: Material) -> str:
    """Whether golden's record, which other commands print and use, says the same; if not, what and why."""
    golden = f"golden ({material.golden.path}), which diffaccel show prints"
    before, now = material.golden.entries.get(key), found.record.entries.get(key)
    if before is None:
        return f"{golden}, has no record of it"
    if now is not None and not before.difference(now.rounded()):
        return f"{golden}, says the same"
    if before.environment == found.record.environment:
        why = "an earlier search's record, which stays until a search with --update-golden finds another"
    else:
        environments = material.golden.environments, material.contents.environments
        there, here = environments[0].get(before.environment), environments[1].get(found.record.environment)
        known = "; ".join(differences(there, here)) if there and here else "not spelled out"
        why = f"recorded in another environment ({known})"
    speedup, lpips, _ = figures(before, None)
    what = f"{speedup}, LPIPS {lpips}, {spaced_params(before.params)}" if before.status == "met" else said_of(before)
    return f"{golden}, says otherwise: {'; '.join([what, *terms_text(before), why])}"


def _undecided(key: GoldenKey, measured: Sequence[tuple[Row, RowFigures]]) -> str:
    if any(may_reach(figures.speedup, key.target) for _, figures in measured):
        return "undecided: it is not known well enough whether a candidate reaches it"
    return "undecided: nothing measured reaches it, and points that were not measured may"


def _outcome(entry: GoldenEntry) -> list[str]:
    if entry.status != "met":
        return [why_unattainable(entry)]
    lines = [f"winner: {spaced_params(entry.params)}"]
    if entry.rule == DIFFBENCH:
        lines.append("  by DiffBench's rule: means decide, not intervals")
    if entry.lpips is not None:
        chosen = f", {entry.selection_lpips:.3f} on those that it was chosen on" if entry.selection_lpips else ""
        pictures = counted(entry.num_samples, "picture")
        lines.append(f"  {entry.speedup:.2f}x, LPIPS {entry.lpips:.3f} on {pictures}{chosen}")
    if metrics := metrics_text(entry):
        lines.append(f"  {metrics}")
    if entry.selection_quality is not None:
        lines.append(f"  {entry.quality} {entry.selection_quality:.4g} on the pictures that it was chosen on")
    if entry.fewer_steps is not None:
        rival = entry.fewer_steps
        score = rival.lpips if rival.quality is None else rival.quality
        word = "as much" if score == entry.deciding_value else "more" if entry.beats_fewer_steps else "less"
        loss = f"{rival.lpips:.3f}" if rival.quality is None else f"{entry.quality} {rival.quality:.4g}"
        scored = f", of {rival.num_samples} pictures" if rival.num_samples else ""
        lines.append(f"  the plain pipeline with {rival.steps} steps is as fast and loses {word}: {loss}{scored}")
    return lines


def _contenders(entry: GoldenEntry | None, fast: Sequence[tuple[Row, RowFigures]], found: Findings) -> list[str]:
    if not fast:
        return []
    params = format_params(entry.params) if entry is not None else ""
    quality, known = found.quality, found.record.best_known
    good = [(row, figures) for row, figures in fast if quality.allows(known[row.key])]
    unknown = sum(quality.value(known[row.key]) is None for row, _ in fast)
    bad = len(fast) - len(good) - unknown
    losers = f"; {bad} of them cannot win: {quality.too_bad}" if bad else ""
    losers += f"; {unknown} of them were measured without {quality.shown}, by another search" if unknown else ""
    others = [(row, figures) for row, figures in good if row.params != params]
    surely = "fast enough in the mean" if entry is not None and entry.rule == DIFFBENCH else "surely fast enough"
    lines = [f"{surely}: {len(fast)}{losers}"]
    lines += [f"  contender: {_in_words(*other, found)}" for other in others[:_NAMED]]
    return lines + ([f"  and {len(others) - _NAMED} more"] if len(others) > _NAMED else [])


def _unmeasured(rows: Sequence[Row]) -> list[str]:
    """Of what was passed over and what failed, how many and why."""
    lines = []
    for verdict, words in (("skipped", "passed over"), ("failed", "failed")):
        own = [row for row in rows if row.verdict == verdict]
        if own:
            reasons = Counter(_FIGURE.sub("N", row.reason) for row in own)
            example = {_FIGURE.sub("N", row.reason): row for row in own}
            lines.append(f"{words} without being measured: {len(own)}")
            lines += [
                f"  {count}{', such as' * (count > 1)}: {example[reason].params}: {example[reason].reason}"
                for reason, count in reasons.most_common(_REASONS)
            ]
    return lines


def _in_words(row: Row, figures: RowFigures, found: Findings) -> str:
    value = found.quality.value(found.record.best_known[row.key])
    speedup = interval_text(figures.speedup.value, (figures.speedup.low, figures.speedup.high), 2, "x")
    return f"{row.params.replace(',', ', ')}: {speedup}, {found.quality.shown} {found.quality.figure(value, 3)}"
