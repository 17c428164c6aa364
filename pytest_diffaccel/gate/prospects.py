"""What a gate run will be able to show, before it begins, by its references' own noise and what their figures took; and
what would show more: said in the same words before a run and after it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from statistics import median

import numpy as np

from pytest_diffaccel.gate.case_plan import BASELINE_FIGURES, LARGEST_ASKED, SURELY, GateCase, affordable, shows
from pytest_diffaccel.gate.clocks import DEVICE, HOST, Clock
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import LOOKS
from pytest_diffaccel.records.gate_sessions import GateSession
from pytest_diffaccel.settings.gate_options import GateSettings
from pytest_diffaccel.words import counted

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
        figures: for which there is time.
        is_reachable: whether any budget shows the one that matters.
        enough_s: a budget that shows all that any budget shows of all winners, seconds.
        counts_pictures: whether references tell what cases take beside timing, which is part of that.
    """

    case: GateCase
    clock: Clock
    is_shown: bool
    shown: float | None
    figures: int
    is_reachable: bool
    enough_s: float
    counts_pictures: bool


@dataclass(frozen=True)
class _Need:
    """What a case's verdict by one clock needs.

    Attributes:
        case: the case.
        clock: the clock.
        reference: what it is compared with.
        tests: how many share the run's false alarms.
        figure_s: what a figure takes, seconds, above 0.
        enough: figures, from which on any number shows the slowdown that matters; 0 where none does.
        most: figures that are taken at the most.
    """

    case: GateCase
    clock: Clock
    reference: Reference
    tests: int
    figure_s: float
    enough: int
    most: int

    def smallest_shown(self, figures: int, matters: float) -> float | None:
        """The smallest slowdown from ``matters`` on that so many figures show; None where it is above a half."""
        asked = (matters, *(slowdown for slowdown in _SLOWDOWNS if slowdown > matters))
        shown = partial(shows, self.case, self.reference, self.clock, self.tests, figures=figures)
        return next((slowdown for slowdown in asked if shown(slowdown)), None)


def prospects(
    cases: Sequence[GateCase],
    sessions: Mapping[str, Sequence[GateSession]],
    reference: Callable[[GateCase, Clock], Reference | None],
    settings: GateSettings,
    wall: Clock,
) -> list[Prospect]:
    """What a run will be able to show of every winner that has a reference whose figures' times are known.

    Args:
        cases: of the whole run, in its order.
        sessions: recorded, by subject.
        reference: what a case is compared with by a clock.
        settings: the gate's.
        wall: the wall clock of the device that this runs on.
    """
    needs = [
        list(_needs(case, sessions.get(case.subject, ()), reference, settings, wall, len(cases))) for case in cases
    ]
    beside_s = [seconds_beside(cases[place:], sessions) or 0.0 for place in range(len(cases) + 1)]
    enough_s = beside_s[0] + sum(need.enough * need.figure_s for own in needs for need in own)
    while any(figures < need.enough for need, figures in _given(cases, needs, beside_s, enough_s)):
        enough_s *= 1.02  # a case keeps more for later ones than they need
    counts_pictures = seconds_beside(cases, sessions) is not None
    found = []
    for need, figures in _given(cases, needs, beside_s, settings.budget_s):
        if need.case.candidate is not None:
            shown = need.smallest_shown(figures, matters := _matters(need.clock, settings))
            showing = (shown == matters, shown, figures, bool(need.enough))
            found.append(Prospect(need.case, need.clock, *showing, enough_s, counts_pictures))
    return found


def _matters(clock: Clock, settings: GateSettings) -> float:
    return settings.host_slowdown if clock == HOST else settings.slowdown


def _needs(
    case: GateCase,
    recorded: Sequence[GateSession],
    reference: Callable[[GateCase, Clock], Reference | None],
    settings: GateSettings,
    wall: Clock,
    cases: int,
) -> Iterator[_Need]:
    """By each clock that its references tell of; of a baseline by the first."""
    tests = cases * (2 if settings.host_fails else 1)
    main = DEVICE if any(session.by("device") for session in recorded) else wall
    for clock in (main, HOST) if case.candidate is not None else (main,):
        known = [speed for session in recorded if (speed := session.by(clock.name)) is not None]
        against, figure_s = reference(case, clock), known[-1].figure_s if known else None
        if against is None or figure_s is None:
            continue
        if case.candidate is None:
            yield _Need(case, clock, against, tests, figure_s, 0, BASELINE_FIGURES)
            continue
        shown = partial(shows, case, against, clock, tests)
        # A look more may show a little less: so many that any more show it, too.
        showing = takewhile(partial(shown, _matters(clock, settings)), range(clock.most, LOOKS[0] - 1, -1))
        enough = min(showing, default=0)
        is_timed = clock != HOST or shown(LARGEST_ASKED, clock.most)
        yield _Need(case, clock, against, tests, figure_s, enough, enough or (clock.most if is_timed else 0))


def _given(
    cases: Sequence[GateCase], needs: Sequence[Sequence[_Need]], beside_s: Sequence[float], budget_s: float
) -> list[tuple[_Need, int]]:
    """Figures that a run has time for, case by case, as :class:`.SpeedJudge` gives them.

    Args:
        cases: of the run, in its order.
        needs: of each case.
        beside_s: what each case and all later ones take beside timing, seconds; and 0 at the end.
        budget_s: the run's, seconds.
    """
    left_s, found = budget_s, []
    for place, case in enumerate(cases):
        later, kept_s = cases[place + 1 :], beside_s[place + 1]
        left_s -= beside_s[place] - kept_s
        for need in needs[place]:
            if need.clock == HOST:
                figures = affordable(case, later, left_s - kept_s, need.figure_s, 1)
            else:
                figures = affordable(case, later, left_s, need.figure_s, 1, kept_s)
            figures = figures if figures >= LOOKS[0] else 0
            found.append((need, figures))
            taken_s = min(figures, need.most) * need.figure_s
            left_s -= taken_s
            kept_s += taken_s * case.times_as_dear(later)
    return found


def seconds_beside(
    cases: Sequence[GateCase], sessions: Mapping[str, Sequence[GateSession]], *, with_control: bool = False
) -> float | None:
    """What cases take beside timing, as when their references were recorded; a case without one, as the others.

    Args:
        cases: any of a run.
        sessions: recorded, by subject.
        with_control: whether their pictures need the A/A control, as other ones than were recorded do.

    Returns:
        Seconds; None where no reference tells.
    """
    recorded = [known[-1] for case in cases if (known := sessions.get(case.subject))]
    told = [(one.beside_s, one.control_s or 0.0) for one in recorded if one.beside_s is not None]
    if not told:
        return None
    # What has no reference has nothing to be equal to.
    untold_s = (len(cases) - len(told)) * median(map(sum, told))
    return sum(beside_s + (control_s if with_control else 0.0) for beside_s, control_s in told) + untold_s


def in_words(found: Sequence[Prospect], settings: GateSettings) -> list[str]:
    """A line per clock, one for each winner of which what matters cannot be shown, and what would show it."""
    lines = []
    for name in dict.fromkeys(prospect.clock.name for prospect in found):
        own = [prospect for prospect in found if prospect.clock.name == name]
        matters = settings.host_slowdown if name == HOST.name else settings.slowdown
        short = [prospect for prospect in own if not prospect.is_shown]
        by = "" if name == "wall" else f" by {name} time"
        lines.append(
            f"a slowdown of {matters:.1%}{by} can be shown of {len(own) - len(short)} of {counted(len(own), 'winner')} "
            f"(in {SURELY:.0%} of runs, at the references' noise)"
        )
        lines += [f"  {prospect.case.key}: {_shown(prospect)}" for prospect in short]
    return lines + [f"  {line}" for line in by_remedy(remedies(found).values())]


def _shown(prospect: Prospect) -> str:
    if not prospect.figures:
        return "no time is left for it"
    if prospect.shown is None:
        return f"not even one of {LARGEST_ASKED:.0%}"
    return f"only one of {prospect.shown:.1%} or more"


def remedies(found: Sequence[Prospect]) -> dict[str, str]:
    """What would show what matters of each winner of which this run cannot, in words, by the winner's key."""
    short: defaultdict[str, list[Prospect]] = defaultdict(list)
    for prospect in found:
        if not prospect.is_shown:
            short[prospect.case.key].append(prospect)
    said = {}
    for key, missing in short.items():
        hopeless = [one.clock.name for one in missing if not one.is_reachable]
        further = "further references (--gate --update-golden), as no budget is enough with so few"
        budget = f"--gate-budget {as_option(missing[0].enough_s)} or more"
        if not missing[0].counts_pictures:
            budget += ": pictures take some of it"
        if len(hopeless) == len(missing):
            said[key] = further
        else:
            said[key] = f"{budget}; by {hopeless[0]} time {further}" if hopeless else budget
    return said


def by_remedy(said: Iterable[str]) -> list[str]:
    """A line per remedy: for how many winners, and what it is."""
    counts = Counter(said)
    if len(counts) == 1:
        return [f"it takes: {remedy}" for remedy in counts]
    return [f"it takes, for {count} of {counts.total()}: {remedy}" for remedy, count in counts.items()]


def as_option(seconds: float) -> str:
    """A time as ``--gate-budget`` takes it, rounded up: ``"95s"`` or ``"7min"``."""
    return f"{math.ceil(seconds)}s" if seconds <= 120 else f"{math.ceil(seconds / 60)}min"


def least_to_record_s(cases: Sequence[GateCase], sessions: Mapping[str, GateSession]) -> float | None:
    """Seconds of timing that recording takes whatever the budget is: a first look of every case.

    Args:
        cases: of the whole run.
        sessions: one of each subject that has been timed; others take as long by what their steps cost.

    Returns:
        None where nothing tells what a figure takes.
    """
    took = {case.subject: session for case in cases if (session := sessions.get(case.subject)) and session.figure_s}
    figure_s = {name: (session.figure_s or 0.0) + _host_s(session) for name, session in took.items()}
    if not figure_s:
        return None
    by_cost = median(figure_s[case.subject] / case.cost for case in cases if case.subject in figure_s)
    return LOOKS[0] * sum(figure_s.get(case.subject, by_cost * case.cost) for case in cases)


def _host_s(session: GateSession) -> float:
    return (session.host.figure_s or 0.0) if session.host else 0.0
