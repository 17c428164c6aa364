"""What running a candidate showed, as plain frozen data: the record that everything further down is made of."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from pytest_diffaccel.matrix import Candidate, Cell

#: What tells a speed-up: the wall clock, or for how long the GPU is busy.
SpeedClock: TypeAlias = Literal["wall", "device"]
#: What keeps an accelerated generation from being faster (:mod:`.bottleneck`).
Bound: TypeAlias = Literal["compute", "launch", "fixed"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided 95% interval.

    Attributes:
        value: the estimate.
        low: lower end, at most ``value``.
        high: upper end, at least ``value``.
    """

    value: float
    low: float
    high: float

    @property
    def half_width_ratio(self) -> float:
        """Half the interval's width as a fraction of the estimate."""
        return (self.high - self.low) / 2 / self.value

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class RunTiming:
    """Times of one whole generation of one batch.

    Attributes:
        total_s: wall time of the call, seconds.
        step_s: time of each denoiser step (denoiser call and scheduler step), seconds; one per step, in order.
        kinds: the kind of each step, as parameters say or pictures decided; as long as ``step_s``.
        whole: whether it drew its pictures; else it ended with its last step.
    """

    total_s: float
    step_s: tuple[float, ...]
    kinds: tuple[str, ...]
    whole: bool = True

    @property
    def fixed_s(self) -> float:
        """What is not a denoiser step: text encoder, latents and, of a whole run, VAE; seconds."""
        return self.total_s - sum(self.step_s)

    def without_first(self, kinds: Collection[str]) -> RunTiming:
        """The run less its first step of each of ``kinds``: those that this process had not made before."""
        first = {self.kinds.index(kind) for kind in kinds if kind in self.kinds}
        left = [place for place in range(len(self.kinds)) if place not in first]
        return RunTiming(
            self.total_s - sum(self.step_s[place] for place in first),
            tuple(self.step_s[place] for place in left),
            tuple(self.kinds[place] for place in left),
            self.whole,
        )


@dataclass(frozen=True)
class Block:
    """One baseline run and the candidate's runs measured next to it, in random order.

    Attributes:
        baseline: the unaccelerated run.
        runs: the candidate's runs of this block, at least one.
        disturbance: what disturbed the block (empty: nothing seen).
        started_at: when, seconds since the epoch; orders the blocks of a search.
    """

    baseline: RunTiming
    runs: tuple[RunTiming, ...]
    disturbance: str = ""
    started_at: float = 0.0


@dataclass(frozen=True)
class Round:
    """One unaccelerated run and runs of several candidates beside it, in random order, as a calibration makes them.

    Attributes:
        baseline: the unaccelerated run.
        candidates: what the others are, at least one; short runs, so their cells have few steps.
        runs: theirs, in the candidates' order.
        disturbance: what disturbed the round (empty: nothing seen).
        started_at: when, seconds since the epoch.
        clock: that its times are of; rounds of before there were two are of the wall clock.
    """

    baseline: RunTiming
    candidates: tuple[Candidate, ...]
    runs: tuple[RunTiming, ...]
    disturbance: str
    started_at: float
    clock: SpeedClock = "wall"

    @property
    def blocks(self) -> list[tuple[Candidate, Block]]:
        """The round as a block of each candidate, all of them with the same unaccelerated run."""
        return [
            (candidate, Block(self.baseline, (run,), self.disturbance, self.started_at))
            for candidate, run in zip(self.candidates, self.runs, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, all fields; :meth:`from_json` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Round:
        """The round that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError: when a field is missing or unknown.
        """
        rest = dict(data)
        return cls(
            baseline=_run_from_json(rest.pop("baseline")),
            candidates=tuple(_candidate_from_json(candidate) for candidate in rest.pop("candidates")),
            runs=tuple(_run_from_json(run) for run in rest.pop("runs")),
            **rest,
        )


@dataclass(frozen=True)
class Quality:
    """How far a candidate's images are from the baseline's: same prompts, seeds and start noise.

    Attributes:
        lpips: mean over samples with its interval; 0 is identical.
        psnr_db: mean peak signal-to-noise ratio, dB; capped at 100 for identical images.
        ssim: mean structural similarity, at most 1.
        lpips_per_sample: LPIPS of each sample in prompt order.
    """

    lpips: Interval
    psnr_db: float
    ssim: float
    lpips_per_sample: tuple[float, ...]


@dataclass(frozen=True)
class MetricValues:
    """What a secondary metric said of a candidate's pictures.

    Attributes:
        identity: what two values must have in common to be compared (:attr:`.Metric.identity`).
        values: one per picture, in prompt order.
        baseline: the same of the unaccelerated pictures; None of a metric that compares with those itself.
        higher_is_better: whether more is better; None where that was not recorded.
        unit: of the values; empty for a number without one.
        seconds: that computing them took, those of the unaccelerated pictures' included where they were computed for
            it; None where that was not recorded.
    """

    identity: str
    values: tuple[float, ...]
    baseline: tuple[float, ...] | None = None
    higher_is_better: bool | None = None
    unit: str = ""
    seconds: float | None = None

    def and_more(self, other: MetricValues) -> MetricValues:
        """With those of further pictures, of a metric that compares with the unaccelerated ones itself."""
        seconds = None if self.seconds is None or other.seconds is None else self.seconds + other.seconds
        return replace(self, values=self.values + other.values, seconds=seconds)


@dataclass(frozen=True)
class MetricFigures:
    """What those values come to.

    Attributes:
        value: their mean.
        ci95: lower and upper end of its interval; None of a single picture.
        change: from the unaccelerated pictures', paired by prompt, as a share of their mean, with its interval; None
            of a metric that compares with them itself, of a single picture, and where their mean may be 0.
    """

    value: float
    ci95: tuple[float, float] | None = None
    change: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """``value``, ``ci95``, ``change`` and ``change_ci95``; the last two only where there is a change."""
        known: dict[str, Any] = {"value": self.value, "ci95": self.ci95 and list(self.ci95)}
        change = self.change
        return known | ({"change": change.value, "change_ci95": [change.low, change.high]} if change else {})


@dataclass(frozen=True)
class Sampling:
    """Which images were made: equal sampling means comparable quality.

    Attributes:
        num_samples: images scored.
        batch_size: images per call.
        seed: seed of the first image; image ``i`` has ``seed + i``.
        prompts_digest: first 12 hex digits of the SHA-256 of the prompts used.
        purpose: ``"search"``; ``"winner"`` (other prompts and seeds, so that choosing does not flatter the chosen); or
            of a rival, whose fewer steps are scored on the winners' samples of a cell: ``"instead of N steps"``, with
            the cell's steps. Of decisions also with the terms that they hold on, ``"search by device time"``.
    """

    num_samples: int
    batch_size: int
    seed: int
    prompts_digest: str
    purpose: str

    def instead_of(self, steps: int) -> Sampling:
        """The same for the rival of a cell of ``steps``."""
        return replace(self, purpose=f"instead of {steps} steps")

    def on_terms(self, terms: Iterable[str]) -> Sampling:
        """The same for decisions that hold on further terms, in words."""
        return replace(self, purpose=" ".join((self.purpose, *terms)))

    @property
    def rival_of(self) -> int | None:
        """The steps of the cell that a rival is measured for; None of what is no rival."""
        found = _RIVAL.fullmatch(self.purpose)
        return int(found[1]) if found else None


_RIVAL = re.compile(r"instead of (\d+) steps")


@dataclass(frozen=True)
class Measurement:
    """A measured candidate.

    Attributes:
        candidate: what was measured.
        environment: id of the environment it was measured in.
        sampling: which images were made.
        speedup: step-kind estimate of baseline time over candidate time, with its interval; without blocks, what the
            cost model predicted.
        wall_speedup: the same from whole runs.
        estimates_agree: whether the two estimates' intervals overlap.
        quality: against the baseline's images.
        blocks: every timed run; none where the speed-up was known well enough.
        fired: how often each method really acted in one generation, by counter (``"cached_steps"`` and so on).
        peak_memory_mb: highest memory during the candidate's first generation (CUDA: allocated; CPU: resident), MiB;
            None where that drew fewer pictures than a batch, or nobody looked.
        busy_share: share of a run during which the GPU works, 0 to 1; of winners only, None where nothing tells.
        metrics: secondary metrics by name; of winners and rivals only, where any was asked for.
        decided: where the pictures decide what a step reuses, the kind of each step of each batch's generation, in
            their order.
        host: the machine's name; empty in records of older versions.
    """

    candidate: Candidate
    environment: str
    sampling: Sampling
    speedup: Interval
    wall_speedup: Interval
    estimates_agree: bool
    quality: Quality
    blocks: tuple[Block, ...]
    fired: dict[str, int] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    busy_share: float | None = None
    metrics: Mapping[str, MetricValues] = field(default_factory=dict)
    decided: tuple[tuple[str, ...], ...] = ()
    host: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, all fields but empty optional ones; :meth:`from_json` reads it back equal."""
        fields = asdict(self)
        for name in ("peak_memory_mb", "busy_share", "metrics", "decided", "host"):
            if not fields[name]:
                del fields[name]
        return fields

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        """The measurement that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError: when a field is missing or unknown.
        """
        rest = dict(data)
        rest.pop("flops", None)  # arithmetic that older versions counted
        rest["peak_memory_mb"] = rest.get("peak_memory_mb") or None  # older versions wrote 0 where they did not look
        quality = rest.pop("quality")
        return cls(
            candidate=_candidate_from_json(rest.pop("candidate")),
            sampling=Sampling(**rest.pop("sampling")),
            speedup=Interval(**rest.pop("speedup")),
            wall_speedup=Interval(**rest.pop("wall_speedup")),
            quality=Quality(
                lpips=Interval(**quality["lpips"]),
                psnr_db=quality["psnr_db"],
                ssim=quality["ssim"],
                lpips_per_sample=tuple(quality["lpips_per_sample"]),
            ),
            blocks=tuple(_block_from_json(block) for block in rest.pop("blocks")),
            metrics={name: _metric_from_json(values) for name, values in rest.pop("metrics", {}).items()},
            decided=tuple(tuple(kinds) for kinds in rest.pop("decided", ())),
            **rest,
        )


def _metric_from_json(data: dict[str, Any]) -> MetricValues:
    rest = dict(data)
    baseline = rest.pop("baseline")
    return MetricValues(
        values=tuple(rest.pop("values")), baseline=None if baseline is None else tuple(baseline), **rest
    )


def _candidate_from_json(data: dict[str, Any]) -> Candidate:
    return Candidate(Cell(**data["cell"]), data["accelerator"], data["params"])


def _block_from_json(data: dict[str, Any]) -> Block:
    return Block(
        baseline=_run_from_json(data["baseline"]),
        runs=tuple(_run_from_json(run) for run in data["runs"]),
        disturbance=data["disturbance"],
        started_at=data["started_at"],
    )


def _run_from_json(data: dict[str, Any]) -> RunTiming:
    return RunTiming(data["total_s"], tuple(data["step_s"]), tuple(data["kinds"]), data.get("whole", True))
