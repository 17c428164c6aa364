"""pytest-benchmark's files from our measurements: it then saves, compares and shows them as its own.

Timing is ours, so its switching itself off under xdist does not matter: its session takes what is added to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from pytest_diffaccel.matrix import Group, slug

if TYPE_CHECKING:
    from pytest_diffaccel.matrix import Params
    from pytest_diffaccel.report.sent_results import CaseResult
    from pytest_diffaccel.search.results import Figures

_EXTRA_INFO = (
    *("speedup", "speedup_ci95", "wall_speedup", "wall_speedup_ci95", "estimates_agree"),
    *("lpips", "lpips_ci95", "psnr_db", "ssim", "peak_memory_mb", "fired", "num_samples", "environment"),
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


def add_benchmarks(config: pytest.Config, nodeid: str, result: CaseResult) -> None:
    """Give pytest-benchmark what a case timed, if it was asked for a file, a comparison or a histogram.

    Args:
        config: the controller's.
        nodeid: the case's node id.
        result: what it found. A candidate whose speed-up the cost model predicted was not timed, and a skipped one was
            not run: neither has rounds, so neither is an entry.
    """
    session = config.pluginmanager.get_plugin("pytest-benchmark")
    if session is None or not _is_asked(config):
        return
    from pytest_benchmark.stats import Metadata

    for source, rounds_s in _timed(nodeid, result):
        metadata = Metadata(source, iterations=1, options={})
        for seconds in rounds_s:
            metadata.update(seconds)
        if rounds_s:
            session.benchmarks.append(metadata)


def _is_asked(config: pytest.Config) -> bool:
    option = config.option
    if option.benchmark_disable and not option.benchmark_enable:
        return False
    names = ("json", "save", "autosave", "compare", "histogram")
    return any(getattr(option, f"benchmark_{name}") for name in names)


def _timed(nodeid: str, result: CaseResult) -> Iterator[tuple[_Source, tuple[float, ...]]]:
    """What the case timed, and each run's seconds: the gate's or a candidate's own, or those of a cell's winners."""
    from pytest_diffaccel.gate.verdict import GateVerdict
    from pytest_diffaccel.search.results import Measured, Winners

    if isinstance(result, GateVerdict):
        extra = {"gate_status": result.status, **dict(result.verdict.figures)}
        params = result.candidate.params if result.candidate else {}
        yield _source(nodeid, result.case, Group(result.cell, result.accelerator), params, extra), result.rounds_s
    elif isinstance(result, Measured):
        yield _source_of(nodeid, result.figures, stored=result.stored), result.figures.rounds_s
    elif isinstance(result, Winners) and result.of_cell:
        for winner in result.of_cell.verified:
            yield _source_of(nodeid, winner.figures), winner.figures.rounds_s


def _source_of(nodeid: str, figures: Figures, **more: object) -> _Source:
    candidate, known = figures.candidate, figures.to_json()
    extra = {name: known[name] for name in (*_EXTRA_INFO, "metrics") if name in known} | more
    return _source(nodeid, candidate.key, candidate.group, candidate.params, extra)


def _source(nodeid: str, subject: str, group: Group, params: Params, extra: Mapping[str, object]) -> _Source:
    path, _, test = nodeid.partition("[")[0].rpartition("::")
    name, (cell, accelerator) = f"{test}[{subject}]", group
    plain = {parameter: value for point in params.values() for parameter, value in point.items()}
    return _Source(
        name=name,
        fullname=f"{path}::{name}",
        group="-".join(filter(None, [str(cell), slug(accelerator)])),
        param=subject,
        params={"cell": str(cell), "accelerator": accelerator, **plain},
        extra_info=extra,
    )
