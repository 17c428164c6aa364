"""What a case is compared with: the gate's own sessions where they were recorded, else golden's interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_diffaccel.gate.sequential import Array, Estimate, lasting_sd
from pytest_diffaccel.measure.deciding import LPIPS
from pytest_diffaccel.records.gate_sessions import Speed
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.settings.gate_options import GateSettings
from pytest_diffaccel.settings.options import benches_command
from pytest_diffaccel.words import counted

_NORMAL_95 = 1.96
# A golden interval is right in 95 of 100 cases, which says little of the 1 in 10,000 that a family of cases needs: it
# is taken for Student's with as many degrees of freedom as a search's few blocks have.
_GOLDEN_DF = 8.0
# How many degrees of freedom the expected spread of sessions is worth beside what was seen.
_PRIOR_DF = 8.0


@dataclass(frozen=True)
class Reference:
    """A known speed-up.

    Attributes:
        log_speedup: its logarithm; 0 for a baseline.
        error: standard error of that, of sessions included.
        df: of the error.
        session_sd: what this session may differ by on top of that.
        baseline_s: what an unaccelerated run took; None when that is not known.
        figure_sd: standard deviation of a figure; None when that is not known.
        source: where it is from, in words.
    """

    log_speedup: float
    error: float
    df: float
    session_sd: float
    baseline_s: float | None
    figure_sd: float | None
    source: str

    @property
    def estimate(self) -> Estimate:
        """For the sequential test."""
        return Estimate(*(np.array(value) for value in (self.log_speedup, self.error, self.df)))

    @classmethod
    def from_sessions(cls, sessions: Sequence[Speed], session_sd: float, lasting_share: float = 0.0) -> Reference:
        """The sessions' mean, each weighted by how well it is known.

        Args:
            sessions: at least one.
            session_sd: what this session may differ by, and each of them.
            lasting_share: of what their figures scatter, how much lasts for a session (:func:`.lasting_sd`).
        """
        weights = np.array([1 / (_own_variance(session, lasting_share) + session_sd**2) for session in sessions])
        means = np.array([session.log_speedup for session in sessions])
        return cls(
            log_speedup=float(weights @ means / weights.sum()),
            error=float(1 / np.sqrt(weights.sum())),
            df=sum(session.df for session in sessions),
            session_sd=session_sd,
            baseline_s=math.exp(float(np.mean([math.log(session.baseline_s) for session in sessions]))),
            figure_sd=float(np.sqrt(np.mean([session.figure_sd**2 for session in sessions]))),
            source=counted(len(sessions), "recorded session"),
        )

    @classmethod
    def from_golden(cls, entry: GoldenEntry) -> Reference:
        """A golden record's speed-up and interval; the entry has figures."""
        if entry.speedup is None or entry.speedup_ci95 is None:
            raise ValueError("a golden record without a speed-up cannot be compared with")
        low, high = entry.speedup_ci95
        # The cost model's intervals include what searches differ by (search/predict/cost_model.py).
        error = math.log(high / low) / (2 * _NORMAL_95)
        return cls(math.log(entry.speedup), error, _GOLDEN_DF, 0.0, None, None, "golden's interval")

    @classmethod
    def of_baseline(cls) -> Reference:
        """The unaccelerated pipeline against itself: exactly as fast."""
        return cls(0.0, 0.0, math.inf, 0.0, None, None, "itself")


def _own_variance(session: Speed, lasting_share: float) -> float:
    """What a session's own figures say that its speed-up is off by."""
    return session.standard_error**2 + float(lasting_sd(session.figure_sd, lasting_share)) ** 2


def learnt_session_sd(subjects: Iterable[Sequence[Speed]], typical: float, lasting_share: float = 0.0) -> float:
    """By how much sessions differ beyond what each knows of itself: method of moments over all subjects.

    The moment estimate (DerSimonian and Laird, Controlled Clinical Trials 7, 1986) is averaged with what is typical, as
    variances, by degrees of freedom.

    Args:
        subjects: the sessions of each subject.
        typical: standard deviation expected beforehand.
        lasting_share: of what figures scatter, how much lasts for a session: it is expected of those subjects already.
    """
    excess = 0.0
    df = 0
    for sessions in subjects:
        count = len(sessions)
        if count < 2:
            continue
        means: Array = np.array([session.log_speedup for session in sessions])
        own = sum(_own_variance(session, lasting_share) for session in sessions)
        excess += float(((means - means.mean()) ** 2).sum()) - (1 - 1 / count) * own
        df += count - 1
    return math.sqrt((_PRIOR_DF * typical**2 + max(0.0, excess)) / (_PRIOR_DF + df))


def record_command(settings: GateSettings, *options: str) -> str:
    """What to type to record references of all that a gate judges."""
    quality = (f"{name}={100 * smallest:g}%" for name, smallest in settings.quality.items() if name != LPIPS)
    named = [part for text in quality for part in ("--gate-quality", text)]
    return benches_command("--gate", "--update-golden", *options, *named, *settings.choice, *settings.place)


def how_to_record(settings: GateSettings) -> str:
    """The same as advice where references lack something."""
    return f"record references while all is well: {record_command(settings)}"
