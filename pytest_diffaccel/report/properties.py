"""A case's figures as plain properties, for tools that read JUnit XML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PLACE = ("cell", "accelerator")
_FIGURES = ("speedup", "wall_speedup", "lpips", "psnr_db", "ssim", "peak_memory_mb")
_INTERVALS = ("speedup_ci95", "wall_speedup_ci95", "lpips_ci95")
_WORDS = ("candidate", "environment", "num_samples", "explored")
_STATUS = "status"
#: All names that :func:`plain_properties` gives.
NAMES = (_STATUS, *_PLACE, *_FIGURES, *_INTERVALS, *_WORDS, "evidence", "fired", "winners", "unattainable", "undecided")


def plain_properties(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what a case found (:mod:`pytest_diffaccel.search.outcome`).

    ``status`` is ``measured``, ``stored`` (by an earlier run), ``skipped``, ``winners`` for the case that verified a
    cell's groups, ``provisional`` for those of its other groups, or ``unfinished`` for a case that found nothing: it
    failed or broke off. Speed-ups and LPIPS have six significant digits, intervals read ``[low, high]``.
    """
    found = {_STATUS: _status(result)}
    found |= {name: str(result[name]) for name in (*_PLACE, *_WORDS) if name in result}
    if "skipped" in result:
        found |= {"candidate": str(result["skipped"]), "evidence": str(result["evidence"])}
    found |= {name: f"{result[name]:.6g}" for name in _FIGURES if name in result}
    found |= {name: "[{:.6g}, {:.6g}]".format(*result[name]) for name in _INTERVALS if name in result}
    if "fired" in result:
        found["fired"] = ", ".join(f"{name}={count}" for name, count in result["fired"].items())
    if "golden" in result:
        met = sum('"status": "met"' in text for text in result["golden"].values())
        found |= {"winners": str(met), "unattainable": str(len(result["golden"]) - met)}
        found |= {"undecided": str(len(result["undecided"]))}
    return list(found.items())


def _status(result: Mapping[str, Any]) -> str:
    if "golden" in result:
        return "winners"
    if "provisional" in result:
        return "provisional"
    if "skipped" in result:
        return "skipped"
    if "candidate" in result:
        return "stored" if result["stored"] else "measured"
    return "unfinished"
