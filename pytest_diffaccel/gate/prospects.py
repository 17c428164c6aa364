"""What a gate run will be able to show, before it begins: by its references' own noise, and what their figures took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_diffaccel.gate.case_plan import LARGEST_ASKED, SURELY, GateCase, shows
from pytest_diffaccel.gate.clocks import DEVICE, HOST, Clock
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import LOOKS
from pytest_diffaccel.records.gate_sessions import GateSession
from pytest_diffaccel.settings.gate_options import GateSettings

# Slowdowns that are asked about.
_SLOWDOWNS = tuple(float(slowdown) for slowdown in np.geomspace(0.002, LARGEST_ASKED, 60))


@dataclass(frozen=True)
class Prospect:
    """Of one winner by one clock.

    Attributes:
        case: the winner.
        clock: the clock.
        is_shown: whether 95% of such runs show the slowdown that matters.
        shown: the smallest that they show, from that one on, as a fraction; None when they show none up to a half.
        needed_s: seconds of timing after which they show the one that matters; infinite when no time is enough.
    """

    case: GateCase
    clock: Clock
    is_shown: bool
    shown: float | None
    needed_s: float


def prospects(
    cases: Sequence[GateCase],
    sessions: Mapping[str, Sequence[GateSession]],
    reference: Callable[[GateCase, Clock], Reference | None],
    settings: GateSettings,
    wall: Clock,
) -> list[Prospect]:
    """What a run will be able to show of every winner that has a reference whose figures' times are known.

    Each has its share of the budget, by what its steps cost, beside what its pictures take; a case that is soon certain
    leaves more to the others.

    Args:
        cases: of the whole run.
        sessions: recorded, by subject.
        reference: what a case is compared with by a clock.
        settings: the gate's.
        wall: the wall clock of the device that this runs on.
    """
    winners = [case for case in cases if case.candidate is not None]
    all_cost = sum(case.cost for case in winners)
    found = []
    for case in winners:
        left_s = settings.budget_s * case.cost / all_cost
        recorded = sessions.get(case.subject, ())
        for clock in (DEVICE if any(session.by("device") for session in recorded) else wall, HOST):
            known = [speed for session in recorded if (speed := session.by(clock.name)) is not None]
            against, figure_s = reference(case, clock), known[-1].figure_s if known else None
            if against is None or figure_s is None:
                continue
            made = _prospect(case, clock, against, left_s, figure_s, len(cases), settings)
            left_s -= min(left_s, made.needed_s)
            found.append(made)
    return found


def _prospect(
    case: GateCase,
    clock: Clock,
    reference: Reference,
    left_s: float,
    figure_s: float,
    cases: int,
    settings: GateSettings,
) -> Prospect:
    tests = cases * (2 if settings.host_fails else 1)

    def shown_by(figures: int, slowdown: float) -> bool:
        return shows(case, reference, clock, tests, slowdown, figures)

    matters = settings.host_slowdown if clock == HOST else settings.slowdown
    figures = int(left_s / figure_s)
    is_shown = shown_by(figures, matters)
    shown = (
        matters
        if is_shown
        else next((slowdown for slowdown in _SLOWDOWNS if slowdown > matters and shown_by(figures, slowdown)), None)
    )
    needed = next((count for count in (*LOOKS, clock.most) if shown_by(count, matters)), None)
    return Prospect(case, clock, is_shown, shown, needed * figure_s if needed else math.inf)


def in_words(found: Sequence[Prospect], settings: GateSettings) -> list[str]:
    """A line per clock, and one for each winner of which what matters cannot be shown."""
    lines = []
    for name in dict.fromkeys(prospect.clock.name for prospect in found):
        own = [prospect for prospect in found if prospect.clock.name == name]
        matters = settings.host_slowdown if name == HOST.name else settings.slowdown
        short = [prospect for prospect in own if not prospect.is_shown]
        by = "" if name == "wall" else f" by {name} time"
        lines.append(
            f"{len(own) - len(short)} of {len(own)} winners: a slowdown of {matters:.1%}{by} can be shown "
            f"(in {SURELY:.0%} of runs, at the references' noise)"
        )
        lines += [f"  {prospect.case.key}: {_what_is(prospect)}" for prospect in short]
    return lines


def _what_is(prospect: Prospect) -> str:
    what = f"one of {prospect.shown:.1%}" if prospect.shown is not None else f"none up to {LARGEST_ASKED:.0%}"
    if math.isinf(prospect.needed_s):
        return f"{what}; more time shows no less: record further references (--gate --update-golden)"
    return f"{what}; what matters needs {prospect.needed_s:.0f} s of timing: give --gate-budget more"
