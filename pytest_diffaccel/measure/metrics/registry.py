"""The metrics that a session knows: the built-in ones, and those that are registered.

Importing this, and so each built-in metric, imports nothing heavy: a session knows them before its first case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_diffaccel.measure.metrics.base import Metric
from pytest_diffaccel.measure.metrics.clip_score import ClipScore
from pytest_diffaccel.measure.metrics.lpips import Lpips
from pytest_diffaccel.measure.metrics.psnr import Psnr
from pytest_diffaccel.measure.metrics.ssim import Ssim
from pytest_diffaccel.models.clip import EMBEDDED, ClipSource
from pytest_diffaccel.words import meant

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_FLAGS = ("higher_is_better", "needs_references", "needs_prompts")


class MetricRegistry:
    """The metrics that a session knows, the built-in ones first. Names are unique, also where case alone differs."""

    def __init__(self, clip: ClipSource | None = None) -> None:
        """Know the built-in ones, with the CLIP that ``clip_score`` asks; None: the embedded stand-in."""
        clip = clip or ClipSource.from_option(EMBEDDED)
        built_in = (Lpips(), Lpips("alex"), Lpips("vgg"), Psnr(), Ssim(), ClipScore(clip))
        self._metrics: dict[str, Metric] = {metric.name: metric for metric in built_in}

    def register(self, metric: Metric) -> None:
        """Add a metric.

        Raises:
            ValueError: when a metric of this name is known already, or its name or what it says of itself cannot be
                used; the message names the fix.
        """
        _check(metric)
        known = next((name for name in self._metrics if name.lower() == metric.name.lower()), None)
        if known is not None:
            raise ValueError(f"{metric.name}: a metric {known} is registered already; give it another name")
        self._metrics[metric.name] = metric

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __getitem__(self, name: str) -> Metric:
        """The metric of this name.

        Raises:
            ValueError: when there is none, naming those that there are.
        """
        if name not in self._metrics:
            near = meant(name.lower(), {known.lower(): known for known in self._metrics})
            raise ValueError(f"no metric {name!r}{near}; valid: {', '.join(self._metrics)}")
        return self._metrics[name]

    @property
    def names(self) -> list[str]:
        """Names of all metrics in order of registration."""
        return list(self._metrics)


def _check(metric: Metric) -> None:
    """Refuse what is no metric, or says of itself what options, records and reports could not use."""
    if isinstance(metric, type):
        raise ValueError(f"{metric.__name__} is a class; register a metric: registry.register({metric.__name__}())")
    if not isinstance(metric, Metric):
        raise ValueError(f"{metric!r} is no metric; derive its class from pytest_diffaccel.measure.metrics.base.Metric")
    name = getattr(metric, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{type(metric).__name__}: name = {name!r}; write up to 40 ASCII letters, digits and _, a letter first"
        )
    for flag in _FLAGS:
        if not isinstance(value := getattr(metric, flag, None), bool):
            raise ValueError(f"{name}: {flag} = {value!r}; write True or False")
    if not metric.lowest < metric.highest:
        raise ValueError(
            f"{name}: its range goes from {metric.lowest!r} to {metric.highest!r}; give the lower end first"
        )
