"""What a process tells the controller beside its results: where its time went, and how its calibrations did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What the names of phases that computed a secondary metric begin with; the metric's follows.
METRIC = "metric "


@dataclass(frozen=True)
class Calibration:
    """How a calibration went.

    Attributes:
        rounds: made now; none where an earlier calibration still holds.
        seconds: that it took.
        half_width_ratio: of the candidate whose speed-up is known least: half its 95% interval, as a share of it.
        baseline_s: a whole run of the cell's unaccelerated pipeline, of one batch, seconds.
        steps: of that run.
        accelerated_share: mean over the candidates of what their runs take, as a share of the unaccelerated one's.
        first_batches: mean over the candidates of their first evaluations' pictures, in batches.
    """

    rounds: int
    seconds: float
    half_width_ratio: float
    baseline_s: float
    steps: int
    accelerated_share: float
    first_batches: float


@dataclass(frozen=True)
class News:
    """What a process did since its last result.

    Attributes:
        phases_s: what it spent its time on, seconds, by name.
        calibrated: how calibrations went that it has not told of yet, by pipe.
        store_away_s: how long it waited for a store that was away, seconds.
    """

    phases_s: Mapping[str, float] = field(default_factory=dict)
    calibrated: Mapping[str, Calibration] = field(default_factory=dict)
    store_away_s: float = 0.0

    @property
    def metrics_s(self) -> dict[str, float]:
        """What secondary metrics took, seconds, by metric."""
        phases = self.phases_s.items()
        return {name.removeprefix(METRIC): seconds for name, seconds in phases if name.startswith(METRIC)}

    def to_json(self) -> dict[str, Any]:
        """``phases_s``, and ``calibrated`` and ``store_away_s`` if there is any."""
        told = {pipe: vars(calibration) for pipe, calibration in self.calibrated.items()}
        away = {"store_away_s": self.store_away_s} if self.store_away_s else {}
        return {"phases_s": dict(self.phases_s)} | ({"calibrated": told} if told else {}) | away
