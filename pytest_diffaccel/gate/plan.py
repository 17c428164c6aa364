"""Which cases a gate run has, in which order, and how many figures each is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pytest_diffaccel.gate.reference import Reference
from pytest_diffaccel.gate.sequential import FALSE_ALARM_RATE, LOOKS, Design
from pytest_diffaccel.matrix import PIPES, Candidate, Cell, slug
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.records.reference import subject

_Value = TypeVar("_Value")

#: Figures of a case at the most, by type of device: enough for 3% at 1% a run (GPU), for 5% on shared cores (CPU).
MOST_FIGURES: Mapping[str, int] = {"cuda": 48, "cpu": 24}
#: How far the speed-ups of two sessions lie apart though nothing changed (standard deviation of a session's logarithm):
#: memory comes to lie otherwise, neighbours are others. Learnt from references of several sessions.
TYPICAL_SESSION_SD: Mapping[str, float] = {"cuda": 0.002, "cpu": 0.004}
#: Of what figures scatter beyond those of a quiet device, how much lasts for a whole session: on a GPU it is the host's
#: doing, which slows launches for minutes, too (searches of one cell repeated on virtual machines: docs/gpus.md). On a
#: CPU such scatter is over within a session.
LASTING_SHARE: Mapping[str, float] = {"cuda": 0.6, "cpu": 0.0}
#: How much a figure varies: runs of 1% on a quiet GPU, or 4 blocks on shared cores (standard deviation of the
#: logarithm).
TYPICAL_FIGURE_SD = 0.0142
# A baseline against itself shows that the measuring is sound; so many figures do.
_BASELINE_FIGURES = 8
# What a winner that is as it was commonly takes until that is certain.
_VERDICT_FIGURES = 12
_POWER = 0.95


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
        return f"{self.cell}-{slug(self.candidate.accelerator)}" if self.candidate else self.key

    @property
    def subject(self) -> str:
        """Its name among the gate's references."""
        return subject(self.entry.environment, self.key)

    @property
    def cost(self) -> float:
        """Of a block, in steps of the unaccelerated pipeline."""
        return self.cell.steps * (1 + 1 / (self.entry.speedup or 1.0 if self.candidate else 1.0))


def of_device(values: Mapping[str, _Value], device: str) -> _Value:
    """The value for a type of device; one that is not among them is taken for a CPU."""
    return values.get(device, values["cpu"])


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
        cell, entry = Cell(key.pipe, key.scheduler, key.steps), golden[key]
        if cell not in cells or key.accelerator not in accelerators or entry.status != "met":
            continue
        baselines.setdefault(cell, GateCase(cell, None, entry, ()))
        candidate = Candidate(cell, key.accelerator, entry.params)
        before = winners.get(candidate.key, GateCase(cell, candidate, entry, ()))
        winners[candidate.key] = replace(before, targets=(*before.targets, key.target))

    def order(case: GateCase) -> tuple[int, bool, bool, float, str]:
        unknown = case.subject not in known
        return (PIPES.index(case.cell.pipe), case.candidate is not None, unknown, case.cost, case.key)

    return sorted([*baselines.values(), *winners.values()], key=order)


def expected_sd(reference: Reference) -> float:
    """How much a figure is going to vary: as in the recorded sessions, else as is typical."""
    return reference.figure_sd or TYPICAL_FIGURE_SD


def speed_share(cases: int) -> float:
    """What of the family's error rate one of ``cases`` cases may spend on speed; quality has the other half."""
    return FALSE_ALARM_RATE / 2 / max(cases, 1)


@dataclass(frozen=True)
class Budget:
    """The time of a whole run; it begins when this is made.

    Attributes:
        seconds: how much.
        began_s: when, on the monotonic clock.
    """

    seconds: float
    began_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds left, possibly below 0."""
        return self.began_s + self.seconds - time.monotonic()


def affordable(case: GateCase, later: Sequence[GateCase], left_s: float, block_s: float, blocks: int) -> int:
    """Figures of a case for which there is time.

    Every later winner keeps its first look, as far as that leaves this one its own; what is left over by cases that are
    soon certain goes to those that come then. A baseline against itself only shows that the measuring is sound, so it
    gets what is left when every winner has enough for a verdict.

    Args:
        case: the case.
        later: those that come after it.
        left_s: seconds left of the budget.
        block_s: of one of its blocks.
        blocks: of a figure.
    """
    figure_s = block_s * blocks
    kept = LOOKS[0] if case.candidate else _VERDICT_FIGURES
    reserved_s = sum(kept * figure_s * one.cost / case.cost for one in later if one.candidate)
    spare = int((left_s - reserved_s) / figure_s)
    if case.candidate is None or spare >= LOOKS[0]:
        return spare
    return min(LOOKS[0], int(left_s / figure_s))


def recordable(case: GateCase, later: Sequence[GateCase], left_s: float, block_s: float, blocks: int) -> int:
    """Figures that a case's reference is recorded from: its share of what is left, by cost; a first look at the least.

    Args:
        case: the case.
        later: those that come after it.
        left_s: seconds left of the budget.
        block_s: of one of its blocks.
        blocks: of a figure.
    """
    shares = 1 + sum(one.cost / case.cost for one in later)
    return max(LOOKS[0], int(left_s / shares / (block_s * blocks)))


def design(
    case: GateCase,
    reference: Reference,
    device: str,
    cases: int,
    slowdown: float,
    figures: int,
    *,
    recording: bool = False,
) -> Design | None:
    """When to look at a case: as many figures as show the smallest slowdown that matters in 95% of runs.

    Args:
        case: the case.
        reference: what it is compared with.
        device: type of the device.
        cases: of the whole run.
        slowdown: the smallest that matters, as a fraction.
        figures: for which there is time.
        recording: whether a reference is recorded, which needs all of them.

    Returns:
        None when there is no time for the first look.
    """
    most, lasting_share = of_device(MOST_FIGURES, device), of_device(LASTING_SHARE, device)
    made = Design(most, math.log1p(slowdown), speed_share(cases), reference.session_sd, lasting_share)
    if recording:
        return replace(made, most=min(most, figures))
    sd = expected_sd(reference)
    choices = [*(look for look in LOOKS if look < most), most]
    enough = next((look for look in choices if replace(made, most=look).power(sd, reference.error) >= _POWER), most)
    if case.candidate is None:
        enough = _BASELINE_FIGURES
    # Half as many again: the noise of this session may be larger.
    wanted = min(most, figures, math.ceil(1.5 * enough))
    return replace(made, most=wanted) if wanted >= LOOKS[0] else None
