"""A case's figures as plain properties, for tools that read JUnit XML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_diffaccel.gate.verdict import Finding, GateVerdict
from pytest_diffaccel.report.sent_results import CaseResult
from pytest_diffaccel.search.results import Broken, CellWinners, Figures, Measured, Skipped, Winners

_FIGURES = ("speedup", "wall_speedup", "lpips", "psnr_db", "ssim", "peak_memory_mb")
_INTERVALS = ("speedup_ci95", "wall_speedup_ci95", "lpips_ci95")
_WORDS = ("candidate", "environment", "num_samples", "explored")
_STATUS = "status"


def plain_properties(result: CaseResult) -> list[tuple[str, str]]:
    """Names and values of what a case found.

    Of a search, ``status`` is ``measured``, ``stored`` (by an earlier run), ``skipped``, ``winners`` for the case that
    verified a cell's groups, ``provisional`` for those of its other groups, or ``unfinished`` for a case that found
    nothing: it failed or broke off. Speed-ups and LPIPS have six significant digits, intervals read ``[low, high]``.
    The case that verified a cell's groups also has ``METRIC CANDIDATE`` and ``METRIC_change CANDIDATE`` of each
    secondary metric of each winner, with its interval; changes are shares.
    Of the gate, ``gate_status``, the verdict's figures, and status, text and change of each finding, of a metric other
    than LPIPS as ``metric_NAME_status``, ...; nothing of a case that broke off.
    """
    if isinstance(result, GateVerdict):
        return list(_of_gate(result))
    if isinstance(result, Broken) and result.case:
        return []
    found = {_STATUS: _status(result), "cell": str(result.cell), "accelerator": result.accelerator}
    if isinstance(result, Measured):
        found |= _figures(result.figures)
    if isinstance(result, Skipped):
        found |= {"candidate": result.candidate.key, "evidence": result.evidence}
    if isinstance(result, Winners):
        found |= {"explored": str(result.explored)}
        if result.of_cell:
            found |= _counts(result.of_cell) | dict(_metrics(result.of_cell))
    return list(found.items())


def _status(result: CaseResult) -> str:
    if isinstance(result, Winners):
        return "winners" if result.of_cell else "provisional"
    if isinstance(result, Measured):
        return "stored" if result.stored else "measured"
    return "skipped" if isinstance(result, Skipped) else "unfinished"


def _figures(figures: Figures) -> dict[str, str]:
    known: dict[str, Any] = figures.to_json()
    found = {name: str(known[name]) for name in _WORDS if name in known}
    found |= {name: f"{known[name]:.6g}" for name in _FIGURES if known[name] is not None}
    found |= {name: _ends(known[name]) for name in _INTERVALS}
    return found | {"fired": ", ".join(f"{name}={count}" for name, count in figures.fired.items())}


def _ends(ends: tuple[float, float]) -> str:
    return "[{:.6g}, {:.6g}]".format(*ends)


def _counts(of_cell: CellWinners) -> dict[str, str]:
    met = sum(decided.entry.status == "met" for decided in of_cell.decided)
    counts = {"winners": met, "unattainable": len(of_cell.decided) - met, "undecided": len(of_cell.undecided)}
    return {name: str(count) for name, count in counts.items()}


def _metrics(of_cell: CellWinners) -> Iterator[tuple[str, str]]:
    for figures in (verified.figures for verified in of_cell.verified):
        for name, metric in figures.metrics.items():
            interval = f" {_ends(metric.ci95)}" if metric.ci95 else ""
            yield f"{name} {figures.candidate.key}", f"{metric.value:.6g}{interval}"
            if metric.change:
                ends = _ends((metric.change.low, metric.change.high))
                yield f"{name}_change {figures.candidate.key}", f"{metric.change.value:.6g} {ends}"


def _of_gate(result: GateVerdict) -> Iterator[tuple[str, str]]:
    yield "gate_status", result.status
    for name, value in result.verdict.figures:
        yield name, f"{value:.6g}"
    for finding in result.verdict.findings:
        yield from _of_finding(finding)


def _of_finding(finding: Finding) -> Iterator[tuple[str, str]]:
    yield f"{finding.key}_status", finding.status
    yield f"{finding.key}_text", finding.text
    if finding.change is not None:
        yield f"{finding.key}_change", f"{finding.change:.6g}"
    if finding.change_ci95 is not None:
        yield f"{finding.key}_change_ci95", _ends(finding.change_ci95)
