"""Which cases a gate run has, in which order, and how many figures each is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pytest_diffaccel.gate.clocks import DEVICE, Clock
from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import FALSE_ALARM_RATE, LOOKS, Design
from pytest_diffaccel.matrix import PIPES, Candidate, Cell
from pytest_diffaccel.records.gate_sessions import subject
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey, rank

# A baseline against itself shows that the measuring is sound; so many figures do.
BASELINE_FIGURES = 8
# What a winner that is as it was commonly takes until that is certain.
_VERDICT_FIGURES = 12
#: A slowdown that so large a share of runs shows is shown.
SURELY = 0.95
#: The largest slowdown that is asked about: by half.
LARGEST_ASKED = 0.5


@dataclass(frozen=True)
class GateCase:
    """One pytest case: a distinct golden winner, or a cell's baseline.

    Attributes:
        cell: where.
        candidate: the winner; None for the baseline.
        entry: its golden record; for a baseline, one of the cell's.
        targets: what it is the winner for, ascending; none for a baseline.
    """

    cell: Cell
    candidate: Candidate | None
    entry: GoldenEntry
    targets: tuple[float, ...]

    @property
    def key(self) -> str:
        """Its canonical name: the candidate's, or the cell's."""
        return self.candidate.key if self.candidate else f"{self.cell}-baseline"

    @property
    def title(self) -> str:
        """For people: cell and accelerator."""
        return self.candidate.group.name if self.candidate else self.key

    @property
    def subject(self) -> str:
        """Its name among the gate's references."""
        return subject(self.entry.environment, self.key)

    @property
    def cost(self) -> float:
        """Of a block, in steps of the unaccelerated pipeline."""
        return self.cell.steps * (1 + 1 / (self.entry.speedup or 1.0 if self.candidate else 1.0))

    def times_as_dear(self, others: Iterable[GateCase]) -> float:
        """What blocks of others cost together, as a multiple of one of its own."""
        return sum(other.cost for other in others) / self.cost


def gate_cases(
    golden: Mapping[GoldenKey, GoldenEntry], cells: Sequence[Cell], accelerators: Sequence[str], known: Sequence[str]
) -> list[GateCase]:
    """The cases of the chosen cells and accelerators, most informative first.

    A pipe at a time, since loading one takes long; its baselines first, which all else stands on; then winners that
    have been measured by a gate before (their slowdowns show soonest), the cheapest first.

    Args:
        golden: the golden records.
        cells: the chosen ones.
        accelerators: names of the chosen ones.
        known: subjects with recorded sessions.
    """
    winners: dict[str, GateCase] = {}
    baselines: dict[Cell, GateCase] = {}
    for key in sorted(golden, key=lambda key: key.prompt_order):
        cell, entry = key.cell, golden[key]
        if cell not in cells or key.accelerator not in accelerators or entry.status != "met":
            continue
        baselines.setdefault(cell, GateCase(cell, None, entry, ()))
        candidate = Candidate(cell, key.accelerator, entry.params)
        before = winners.get(candidate.key, GateCase(cell, candidate, entry, ()))
        winners[candidate.key] = replace(before, targets=(*before.targets, key.target))

    def order(case: GateCase) -> tuple[tuple[int, str], bool, bool, float, str]:
        unknown = case.subject not in known
        return (rank(case.cell.pipe, PIPES), case.candidate is not None, unknown, case.cost, case.key)

    return sorted([*baselines.values(), *winners.values()], key=order)


def expected_sd(reference: Reference | None, clock: Clock) -> float:
    """How much a figure is going to vary: as in the recorded sessions, else as is typical of the clock."""
    return (reference and reference.figure_sd) or clock.figure_sd


def speed_share(cases: int) -> float:
    """What of the family's error rate one of ``cases`` cases may spend on speed; quality has the other half."""
    return FALSE_ALARM_RATE / 2 / max(cases, 1)


class Budget:
    """The time of a whole run's judging; it begins when this is made.

    Args:
        seconds: how much.
        now: a monotonic clock, seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._now = now
        self._began_s, self._start_s = now(), 0.0

    @property
    def left_s(self) -> float:
        """Seconds left, possibly below 0."""
        return self._began_s + self._start_s + self.seconds - self._now()

    @contextmanager
    def start(self) -> Iterator[None]:
        """What takes long on one machine and not on another, and judges nothing: loading a model. It does not count."""
        began_s = self._now()
        try:
            yield
        finally:
            self._start_s += self._now() - began_s


def affordable(
    case: GateCase, later: Sequence[GateCase], left_s: float, block_s: float, blocks: int, later_beside_s: float = 0.0
) -> int:
    """Figures of a case for which there is time.

    Every later winner keeps its pictures and its first look, as far as that leaves this one its own; what is left over
    by cases that are soon certain goes to those that come then. A baseline against itself only shows that the measuring
    is sound, so it gets what is left when every winner has enough for a verdict.

    Args:
        case: the case.
        later: those that come after it.
        left_s: seconds left of the budget.
        block_s: of one of its blocks.
        blocks: of a figure.
        later_beside_s: what those that come after it take beside timing, seconds.
    """
    figure_s = block_s * blocks
    kept = LOOKS[0] if case.candidate else _VERDICT_FIGURES
    reserved_s = later_beside_s + kept * figure_s * case.times_as_dear(other for other in later if other.candidate)
    spare = int((left_s - reserved_s) / figure_s)
    if case.candidate is None or spare >= LOOKS[0]:
        return spare
    return min(LOOKS[0], int(left_s / figure_s))


def recordable(
    case: GateCase, later: Sequence[GateCase], left_s: float, block_s: float, blocks: int, later_beside_s: float = 0.0
) -> int:
    """Figures that a case's reference is recorded from: its share of what is left, by cost; a first look at the least.

    Args:
        case: the case.
        later: those that come after it.
        left_s: seconds left of the budget.
        block_s: of one of its blocks.
        blocks: of a figure.
        later_beside_s: what those that come after it take beside timing, seconds.
    """
    shares = 1 + case.times_as_dear(later)
    return max(LOOKS[0], int((left_s - later_beside_s) / shares / (block_s * blocks)))


def design(
    case: GateCase,
    reference: Reference | None,
    clock: Clock,
    cases: int,
    slowdown: float,
    figures: int,
    *,
    recording: bool = False,
) -> Design | None:
    """When to look at a case: as many figures as show the smallest slowdown that matters in 95% of runs.

    Args:
        case: the case.
        reference: what it is compared with; None where a first one is recorded.
        clock: what it is timed by.
        cases: of the whole run.
        slowdown: the smallest that matters, as a fraction.
        figures: for which there is time.
        recording: whether a reference is recorded, which needs all of them.

    Returns:
        None when there is no time for the first look.
    """
    session_sd = reference.session_sd if reference else clock.session_sd
    made = Design(clock.most, math.log1p(slowdown), speed_share(cases), session_sd, clock.lasting_share)
    if recording:
        # Of a baseline only its time is used, which a GPU's own clock soon knows.
        most = BASELINE_FIGURES if case.candidate is None and clock == DEVICE else clock.most
        return replace(made, most=min(most, figures))
    choices = [*(look for look in LOOKS if look < clock.most), clock.most]
    enough = next((look for look in choices if power(replace(made, most=look), reference, clock) >= SURELY), clock.most)
    if case.candidate is None:
        enough = BASELINE_FIGURES
    # Half as many again: the noise of this session may be larger.
    wanted = min(clock.most, figures, math.ceil(1.5 * enough))
    return replace(made, most=wanted) if wanted >= LOOKS[0] else None


def power(plan: Design, reference: Reference | None, clock: Clock) -> float:
    """Chance that a plan shows the smallest slowdown that matters."""
    return plan.power(expected_sd(reference, clock), reference.error if reference else 0.0)


def shows(case: GateCase, reference: Reference | None, clock: Clock, cases: int, slowdown: float, figures: int) -> bool:
    """Whether so many figures show a slowdown in 95% of runs; the arguments are those of :func:`design`."""
    plan = design(case, reference, clock, cases, slowdown, figures)
    return plan is not None and power(plan, reference, clock) >= SURELY
