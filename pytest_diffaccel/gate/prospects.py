"""What a gate run will be able to show, before it begins, by its references' own noise and what their figures took; and
what would show more: said in the same words before a run and after it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median

import numpy as np

from pytest_diffaccel.gate.case_plan import LARGEST_ASKED, SURELY, GateCase, shows
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
        share: of what timing may take, what is for this winner, above 0 and at most 1.
        beside_s: what all cases take beside timing (pictures, whole runs), seconds; None where no reference tells.
        is_shown: whether 95% of such runs show the slowdown that matters.
        shown: the smallest that they show, from that one on, as a fraction; None when they show none up to a half.
        needed_s: seconds of timing, above 0, after which they show the one that matters; infinite when none are enough.
    """

    case: GateCase
    clock: Clock
    share: float
    beside_s: float | None
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

    Each has its share of what pictures leave of the budget, by what its steps cost; a case that is soon certain leaves
    more to the others.

    Args:
        cases: of the whole run.
        sessions: recorded, by subject.
        reference: what a case is compared with by a clock.
        settings: the gate's.
        wall: the wall clock of the device that this runs on.
    """
    winners = [case for case in cases if case.candidate is not None]
    all_cost = sum(case.cost for case in winners)
    beside_s = seconds_beside(cases, sessions)
    timing_s = max(0.0, settings.budget_s - (beside_s or 0.0))
    found = []
    for case in winners:
        share = case.cost / all_cost
        left_s = timing_s * share
        recorded = sessions.get(case.subject, ())
        for clock in (DEVICE if any(session.by("device") for session in recorded) else wall, HOST):
            known = [speed for session in recorded if (speed := session.by(clock.name)) is not None]
            against, figure_s = reference(case, clock), known[-1].figure_s if known else None
            if against is None or figure_s is None:
                continue
            shows_what = _shows_what(case, clock, against, left_s, figure_s, len(cases), settings)
            made = Prospect(case, clock, share, beside_s, *shows_what)
            left_s -= min(left_s, made.needed_s)
            found.append(made)
    return found


def _shows_what(
    case: GateCase,
    clock: Clock,
    reference: Reference,
    left_s: float,
    figure_s: float,
    cases: int,
    settings: GateSettings,
) -> tuple[bool, float | None, float]:
    """A prospect's ``is_shown``, ``shown`` and ``needed_s``, with ``left_s`` seconds for its figures."""
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
    if is_shown:
        needed = next((count for count in (*LOOKS, clock.most) if shown_by(count, matters)), figures)
    else:  # a look more may show a little less: so many that any more show it, too
        enough = takewhile(lambda count: shown_by(count, matters), range(clock.most, LOOKS[0] - 1, -1))
        needed = min(enough, default=0)
    return is_shown, shown, needed * figure_s if needed else math.inf


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
    if prospect.shown is None:
        return f"not even one of {LARGEST_ASKED:.0%}"
    return f"only one of {prospect.shown:.1%} or more"


def remedies(found: Sequence[Prospect]) -> dict[str, str]:
    """What would show what matters of each winner of which this run cannot, in words, by the winner's key.

    One budget for all: at that, each one's share is enough for those of its clocks that any budget is enough for.
    """
    needed_s: defaultdict[str, float] = defaultdict(float)
    short: defaultdict[str, list[Prospect]] = defaultdict(list)
    for prospect in found:
        if math.isfinite(prospect.needed_s):
            needed_s[prospect.case.key] += prospect.needed_s / prospect.share
        if not prospect.is_shown:
            short[prospect.case.key].append(prospect)
    reached = [key for key, missing in short.items() if any(math.isfinite(one.needed_s) for one in missing)]
    beside_s = next((prospect.beside_s for prospect in found), None)
    enough_s = max((needed_s[key] for key in reached), default=0.0) + (beside_s or 0.0)
    budget = f"--gate-budget {as_option(enough_s)} or more"
    if beside_s is None:
        budget += ": pictures take some of it"
    said = {}
    for key, missing in short.items():
        hopeless = [one.clock.name for one in missing if not math.isfinite(one.needed_s)]
        further = "further references (--gate --update-golden), as no budget is enough with so few"
        if key not in reached:
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
