"""pytest-benchmark's files from our measurements: it then saves, compares and shows them as its own.

Timing is ours, so its switching itself off under xdist does not matter: its session takes what is added to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_diffaccel.matrix import slug

_EXTRA_INFO = (
    *("speedup", "speedup_ci95", "wall_speedup", "wall_speedup_ci95", "estimates_agree"),
    *("lpips", "lpips_ci95", "psnr_db", "ssim", "peak_memory_mb", "fired", "num_samples", "environment", "stored"),
)


@dataclass(frozen=True)
class _Source:
    """What pytest-benchmark's ``Metadata`` reads of its fixture.

    Attributes:
        name: the test's name.
        fullname: its node id: what two runs are matched by.
        group: benchmarks that are shown in one table.
        param: the test's id in brackets.
        params: the parameters by name.
        extra_info: whatever else is to be kept.
        cprofile_stats: none, ever.
        has_error: false, ever: a case that failed has no rounds.
    """

    name: str
    fullname: str
    group: str
    param: str
    params: Mapping[str, object]
    extra_info: Mapping[str, object]
    cprofile_stats: None = field(default=None)
    has_error: bool = False


def add_benchmarks(config: pytest.Config, nodeid: str, result: Mapping[str, Any]) -> None:
    """Give pytest-benchmark what a case timed, if it was asked for a file, a comparison or a histogram.

    Args:
        config: the controller's.
        nodeid: the case's node id.
        result: what it found, see :mod:`pytest_diffaccel.search.outcome` and :meth:`.GateRun.judge`. A candidate whose
            speed-up the cost model predicted was not timed, and a skipped one was not run: neither has rounds, so
            neither is an entry.
    """
    session = config.pluginmanager.get_plugin("pytest-benchmark")
    if session is None or not _is_asked(config):
        return
    from pytest_benchmark.stats import Metadata

    for measured in _timed(result):
        metadata = Metadata(_source(nodeid, measured), iterations=1, options={})
        for seconds in measured["rounds_s"]:
            metadata.update(seconds)
        session.benchmarks.append(metadata)


def _is_asked(config: pytest.Config) -> bool:
    option = config.option
    if option.benchmark_disable and not option.benchmark_enable:
        return False
    names = ("json", "save", "autosave", "compare", "histogram")
    return any(getattr(option, f"benchmark_{name}") for name in names)


def _timed(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The case's own measurement, the gate's or a candidate's, or those of a group's winners."""
    for measured in (result, *result.get("verified", ())):
        if measured.get("rounds_s"):
            yield measured


def _source(nodeid: str, measured: Mapping[str, Any]) -> _Source:
    path, _, test = nodeid.partition("[")[0].rpartition("::")
    subject = measured["case"] if "case" in measured else measured["candidate"]
    name = f"{test}[{subject}]"
    verdict = measured.get("verdict")
    judged = {"gate_status": verdict["status"], **verdict["figures"]} if verdict else {}
    params = {parameter: value for point in measured["params"].values() for parameter, value in point.items()}
    return _Source(
        name=name,
        fullname=f"{path}::{name}",
        group="-".join(filter(None, [measured["cell"], slug(measured["accelerator"])])),
        param=subject,
        params={"cell": measured["cell"], "accelerator": measured["accelerator"], **params},
        extra_info={one: measured[one] for one in _EXTRA_INFO if one in measured} | judged,
    )
