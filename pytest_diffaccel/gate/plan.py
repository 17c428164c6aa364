"""Which cases a gate run has, in which order, and what the budget buys each of them."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_diffaccel.gate.sequential import FALSE_ALARM_RATE

#: Figures of a case at the most, by type of device: enough for 3% at 1% a run (GPU), for 5% on shared cores (CPU).
MOST_FIGURES: Mapping[str, int] = {"cuda": 48, "cpu": 24}
#: How far the speed-ups of two sessions lie apart though nothing changed (standard deviation of a session's logarithm):
#: memory comes to lie otherwise, neighbours are others. Learnt from references of several sessions.
TYPICAL_SESSION_SD: Mapping[str, float] = {"cuda": 0.002, "cpu": 0.004}


def speed_share(cases: int) -> float:
    """What of the family's error rate one of ``cases`` cases may spend on speed; quality has the other half."""
    return FALSE_ALARM_RATE / 2 / max(cases, 1)
