"""What each metric says of candidates, and the axes that the chart of a cell can have by that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.measure.measurement import Measurement, MetricValues
from pytest_diffaccel.measure.metrics.lpips import Lpips
from pytest_diffaccel.measure.metrics.psnr import Psnr
from pytest_diffaccel.measure.metrics.ssim import Ssim
from pytest_diffaccel.measure.statistics import metric_figures
from pytest_diffaccel.report.html.content.cells import CellRecord

PSNR, SSIM = Psnr.name, Ssim.name


@dataclass(frozen=True)
class Score:
    """What a metric says of a candidate.

    Attributes:
        value: its mean; a change in percent.
        low: lower end of its 95% interval; None where none is known.
        high: upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    """What quality may be told by in a chart.

    Attributes:
        name: of its scores.
        words: what a reader chooses.
        title: what the axis is labelled with, without its direction.
        higher_is_better: None where the records do not say.
        digits: of its figures, as d3 formats them.
        unit: behind a figure, with the space before it.
        plain: of the unaccelerated pipeline; None where that is not known, or is off any useful scale.
    """

    name: str
    words: str
    title: str
    higher_is_better: bool | None
    digits: str
    unit: str = ""
    plain: float | None = None

    @property
    def titled(self) -> str:
        """The title with its direction."""
        if self.higher_is_better is None:
            return self.title
        return f"{self.title} ({'higher' if self.higher_is_better else 'lower'} is better)"


def scores_of(measurement: Measurement) -> dict[str, Score]:
    """Means and changes by the name of their axis: those that every candidate has, and its secondary metrics."""
    quality = measurement.quality
    scores = {
        LPIPS: Score(quality.lpips.value, quality.lpips.low, quality.lpips.high),
        PSNR: Score(quality.psnr_db),
        SSIM: Score(quality.ssim),
    }
    for name, metric in measurement.metrics.items():
        figures = metric_figures(metric)
        scores[name] = Score(figures.value, *(figures.ci95 or (None, None)))
        if figures.change is not None:
            ends = (figures.change.value, figures.change.low, figures.change.high)
            scores[_change_of(name)] = Score(*(100 * end for end in ends))
    return scores


def picture_scores(measurement: Measurement, place: int) -> list[str]:
    """What each secondary metric says of one picture, and of the unaccelerated one where it scores that, too."""
    said = []
    for name, metric in measurement.metrics.items():
        unit = f" {metric.unit}" if metric.unit else ""
        plain = f" (unaccelerated {metric.baseline[place]:.4g})" if metric.baseline else ""
        said.append(f"{name} {metric.values[place]:.4g}{unit}{plain}")
    return said


def axes_of(record: CellRecord) -> list[Axis]:
    """The axes by which anything of a cell is known, LPIPS first."""
    axes = [
        Axis(LPIPS, "LPIPS", "LPIPS to the unaccelerated picture", Lpips.higher_is_better, ".4f", plain=0.0),
        # An identical picture has no finite one.
        Axis(PSNR, "PSNR", f"PSNR to the unaccelerated picture, {Psnr.unit}", Psnr.higher_is_better, ".1f", " dB"),
        Axis(SSIM, "SSIM", "SSIM to the unaccelerated picture", Ssim.higher_is_better, ".3f", plain=1.0),
    ]
    measured = _measured(record)
    secondary = {name: metric for one in measured for name, metric in one.metrics.items() if name not in (PSNR, SSIM)}
    known = {name for one in measured for name in scores_of(one)}
    for name, metric in sorted(secondary.items()):
        axes.append(_axis(name, metric))
        if _change_of(name) in known:
            words, better = f"change of {name}", metric.higher_is_better
            title = f"{words} from unaccelerated, %"
            axes.append(Axis(_change_of(name), words, title, better, "+.1f", "%", 0.0))
    return axes


def _axis(name: str, metric: MetricValues) -> Axis:
    plain = sum(metric.baseline) / len(metric.baseline) if metric.baseline else None
    title = f"{name}, {metric.unit}" if metric.unit else name
    unit = f" {metric.unit}" if metric.unit else ""
    return Axis(name, name, title, metric.higher_is_better, ".4~g", unit, plain)


def _change_of(name: str) -> str:
    """With a space, which no metric's name has."""
    return f"{name} change"


def frontier_points(axis: Axis, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (speed-up, score) those that none is as fast as and better, by rising speed-up.

    The unaccelerated pipeline is one of them, if its score is known; what is no faster is of no use. None where the
    records do not say what is better.
    """
    if axis.higher_is_better is None:
        return []
    sign = -1 if axis.higher_is_better else 1
    frontier: list[tuple[float, float]] = []
    for speedup, score in sorted(points, key=lambda point: (-point[0], sign * point[1])):
        if speedup > 1 and (not frontier or sign * score < sign * frontier[-1][1]):
            frontier.append((speedup, score))
    if axis.plain is not None and (not frontier or sign * axis.plain <= sign * frontier[-1][1]):
        frontier.append((1.0, axis.plain))
    return frontier[::-1]


def metric_seconds(record: CellRecord) -> Mapping[str, float]:
    """What computing each secondary metric took in all, seconds, as far as that was recorded."""
    took: dict[str, float] = {}
    for measurement in _measured(record):
        for name, metric in measurement.metrics.items():
            if metric.seconds is not None:
                took[name] = took.get(name, 0.0) + metric.seconds
    return took


def _measured(record: CellRecord) -> list[Measurement]:
    return [*record.searched.values(), *record.verified.values(), *record.rivals]
