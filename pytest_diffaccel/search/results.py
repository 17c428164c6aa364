"""What a search's case sends from its worker to the controller: one of a few kinds of frozen data.

Each has a ``to_json`` for people's other tools (logs, properties), whose names and shapes are documented in
docs/records.md; what travels is the data itself (:mod:`pytest_diffaccel.report.sent_results`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pytest_diffaccel.matrix import Candidate, Cell, Params
from pytest_diffaccel.measure.measurement import Bound, Interval, MetricFigures
from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.search.news import News
from pytest_diffaccel.search.predict.reach import may_reach


@dataclass(frozen=True)
class Figures:
    """A measurement without its blocks (:class:`.Measurement`).

    Attributes:
        candidate: what was measured.
        speedup: step-kind estimate, measured or predicted.
        wall_speedup: from whole runs.
        estimates_agree: whether the intervals of both overlap.
        lpips: mean over samples with its interval.
        psnr_db: mean peak signal-to-noise ratio, dB.
        ssim: mean structural similarity, at most 1.
        fired: how often each method acted in one generation, by counter.
        peak_memory_mb: highest memory during the first generation, MiB; None where that was no whole batch.
        num_samples: images scored.
        environment: id of the environment.
        rounds_s: seconds of each timed run; none where it was not timed.
        metrics: metrics beside LPIPS, by name: those that were asked for of winners, and of all the one that decides.
    """

    candidate: Candidate
    speedup: Interval
    wall_speedup: Interval
    estimates_agree: bool
    lpips: Interval
    psnr_db: float
    ssim: float
    fired: Mapping[str, int]
    peak_memory_mb: float | None
    num_samples: int
    environment: str
    rounds_s: tuple[float, ...] = ()
    metrics: Mapping[str, MetricFigures] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON types; an interval is a figure and its ``..._ci95``; ``metrics`` only where there are any."""
        metrics = {name: metric.to_json() for name, metric in self.metrics.items()}
        return {
            "cell": str(self.candidate.cell),
            "accelerator": self.candidate.accelerator,
            "candidate": self.candidate.key,
            "params": self.candidate.params,
            "speedup": self.speedup.value,
            "speedup_ci95": ends(self.speedup),
            "wall_speedup": self.wall_speedup.value,
            "wall_speedup_ci95": ends(self.wall_speedup),
            "estimates_agree": self.estimates_agree,
            "lpips": self.lpips.value,
            "lpips_ci95": ends(self.lpips),
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "fired": dict(self.fired),
            "peak_memory_mb": self.peak_memory_mb,
            "num_samples": self.num_samples,
            "environment": self.environment,
            "rounds_s": list(self.rounds_s),
            **({"metrics": metrics} if metrics else {}),
        }


def ends(interval: Interval) -> list[float]:
    """``[low, high]``."""
    return [interval.low, interval.high]


@dataclass(frozen=True)
class Measured:
    """A candidate's case that measured it, or found it measured.

    Attributes:
        figures: what was measured.
        stored: whether an earlier run had made them.
        news: of the process.
        kind: which of the results it is.
    """

    figures: Figures
    stored: bool
    news: News = field(default_factory=News)
    kind: Literal["measured"] = "measured"

    @property
    def cell(self) -> Cell:
        """The candidate's cell."""
        return self.figures.candidate.cell

    @property
    def accelerator(self) -> str:
        """The candidate's accelerator."""
        return self.figures.candidate.accelerator

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {**self.figures.to_json(), "stored": self.stored, **self.news.to_json()}


@dataclass(frozen=True)
class Skipped:
    """A candidate's case that found it not worth measuring.

    Attributes:
        candidate: what was passed over.
        evidence: why, in words.
        kind: which of the results it is.
    """

    candidate: Candidate
    evidence: str
    kind: Literal["skipped"] = "skipped"

    @property
    def cell(self) -> Cell:
        """The candidate's cell."""
        return self.candidate.cell

    @property
    def accelerator(self) -> str:
        """The candidate's accelerator."""
        return self.candidate.accelerator

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        place = _place(self.cell, self.accelerator)
        return {**place, "skipped": self.candidate.key, "evidence": self.evidence}


@dataclass(frozen=True)
class Chosen:
    """What stands for a target: its winner, or what comes nearest to it.

    Attributes:
        key: pipe, scheduler, steps, accelerator and target.
        params: the candidate's parameters.
        speedup: with its interval, from all that is known.
        lpips: its mean loss on the search's samples.
        barred: the bound on another metric that it does not surely keep, in words; empty where it is none.
        decided_by: the metric that decides, and its value on those samples; None where that is LPIPS.
    """

    key: GoldenKey
    params: Params
    speedup: Interval
    lpips: float
    barred: str = ""
    decided_by: tuple[str, float] | None = None

    @property
    def loss_text(self) -> str:
        """How much it lost, by the metric that decides, in words."""
        return f"LPIPS {self.lpips:.3f}" if self.decided_by is None else "{} {:.3g}".format(*self.decided_by)

    @property
    def may_reach(self) -> bool:
        """Whether it may be fast enough itself; if not, an undecided target is open to what was not measured."""
        return may_reach(self.speedup, self.key.target)

    def to_json(self) -> dict[str, Any]:
        """JSON types, without what it stands for."""
        return {
            "params": self.params,
            "speedup": self.speedup.value,
            "speedup_ci95": ends(self.speedup),
            "lpips": self.lpips,
            **({"barred": self.barred} if self.barred else {}),
            **({"quality": dict([self.decided_by])} if self.decided_by else {}),
        }


@dataclass(frozen=True)
class Verified:
    """A winner's own measurement.

    Attributes:
        figures: what it showed.
        bound: what bounds its steps (:class:`.Bottleneck`); None where that was not looked at.
    """

    figures: Figures
    bound: Bound | None

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {**self.figures.to_json(), "bound": self.bound}


@dataclass(frozen=True)
class Decided:
    """What golden records of a key.

    Attributes:
        key: the key.
        entry: its entry.
        pictures: folder of the winner's numbered PNG files; None where it was not verified.
    """

    key: GoldenKey
    entry: GoldenEntry
    pictures: str | None


@dataclass(frozen=True)
class CellWinners:
    """The winners of all of a cell's groups, verified.

    Attributes:
        decided: every target that is.
        undecided: of the others, what comes nearest.
        verified: the winners' own measurements.
        environment: theirs, with the scale of its losses.
        baseline: folder of the unaccelerated pipeline's numbered PNG files.
        prompts: theirs, in order.
        barred: why verified candidates cannot win within the bounds on other metrics, in words, by candidate key.
        unfinished: accelerators of which others may yet win: a further session goes on with them.
    """

    decided: tuple[Decided, ...]
    undecided: tuple[Chosen, ...]
    verified: tuple[Verified, ...]
    environment: Environment
    baseline: str
    prompts: tuple[str, ...]
    barred: Mapping[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON types; golden entries as the text that golden has of them."""
        return {
            "golden": {str(decided.key): decided.entry.to_json() for decided in self.decided},
            "undecided": [{"key": str(chosen.key), **chosen.to_json()} for chosen in self.undecided],
            "verified": [measured.to_json() for measured in self.verified],
            "environments": {self.environment.id: self.environment.to_json()},
            "pictures": {
                str(decided.key): decided.pictures for decided in self.decided if decided.pictures is not None
            },
            "baseline": self.baseline,
            "prompts": list(self.prompts),
            **({"barred": dict(self.barred)} if self.barred else {}),
            **({"unfinished": list(self.unfinished)} if self.unfinished else {}),
        }


@dataclass(frozen=True)
class Refusal:
    """Why a group has no winners.

    Attributes:
        why: ``"unfinished"``: candidates have not had their turn; ``"unfit"``: the model takes none of them;
            ``"failed"``: all that were tried failed.
        text: in words.
    """

    why: Literal["unfinished", "unfit", "failed"]
    text: str

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {"refused": self.text, "unfinished": self.why == "unfinished", "unfit": self.why == "unfit"}


@dataclass(frozen=True)
class Winners:
    """A group's winners' case.

    Attributes:
        cell: the group's cell.
        accelerator: the group's.
        provisional: its winners before they are verified, of the targets that are met.
        explored: candidates that the case evaluated.
        left: promising ones that there was no time for.
        failed: what went wrong with others, a line each.
        refused: why the group has no winners; None where it may have.
        of_cell: after the last of the cell's groups: the winners of all.
        news: of the process.
        kind: which of the results it is.
    """

    cell: Cell
    accelerator: str
    provisional: tuple[Chosen, ...] = ()
    explored: int = 0
    left: int = 0
    failed: tuple[str, ...] = ()
    refused: Refusal | None = None
    of_cell: CellWinners | None = None
    news: News = field(default_factory=News)
    kind: Literal["winners"] = "winners"

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            **_place(self.cell, self.accelerator),
            "provisional": [{"target": chosen.key.target, **chosen.to_json()} for chosen in self.provisional],
            "explored": self.explored,
            "left": self.left,
            "failed": list(self.failed),
            **(self.of_cell.to_json() if self.of_cell else {}),
            **(self.refused.to_json() if self.refused else {}),
            **self.news.to_json(),
        }


@dataclass(frozen=True)
class Broken:
    """A case that found nothing, as far as is known: it has begun, failed, or its process ended.

    Attributes:
        cell: its cell.
        accelerator: its accelerator; empty for the gate's.
        case: the gate's name of its case; empty for the search's.
        kind: which of the results it is.
    """

    cell: Cell
    accelerator: str = ""
    case: str = ""
    kind: Literal["broken"] = "broken"

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {"cell": str(self.cell), "case": self.case} if self.case else _place(self.cell, self.accelerator)


def _place(cell: Cell, accelerator: str) -> dict[str, Any]:
    return {"cell": str(cell), "accelerator": accelerator}


SearchResult: TypeAlias = Measured | Skipped | Winners | Broken
