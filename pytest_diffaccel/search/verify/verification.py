"""Verification: a cell's winners are chosen, measured again together, and chosen again before anything is recorded.

The best of many noisy figures looks better than it is. So the winners of all accelerators of a cell are timed in shared
blocks, on other prompts and seeds, and the same runs make the pictures that are scored. What that shows of the kinds of
steps may change a choice; a new one is measured, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_diffaccel.devices import CudaBroken, is_cuda_broken
from pytest_diffaccel.matrix import TARGETS, Candidate, Cell
from pytest_diffaccel.measure.measurement import Interval, Measurement
from pytest_diffaccel.search.budget import TimeIsUp
from pytest_diffaccel.search.calibrate.calibration import ensure_calibrated
from pytest_diffaccel.search.calibrate.timer import Timer
from pytest_diffaccel.search.decide.select import Choice, choose_within
from pytest_diffaccel.search.evaluate.attempt import note_failure
from pytest_diffaccel.search.evaluate.evaluation import measure_together
from pytest_diffaccel.search.group import GroupSearch
from pytest_diffaccel.search.pipelines import Unavailable
from pytest_diffaccel.search.predict.reach import is_open
from pytest_diffaccel.search.verify.choices import final_choice, options_of, verifiable, worth_verifying
from pytest_diffaccel.search.verify.fewer_steps import rival
from pytest_diffaccel.search.workbench import Workbench

# Choices move with what verifying them shows; after so many turns only what is verified is chosen from.
_TURNS = 4
#: How far a winner's 95% interval may reach to either side, as a share of its speed-up, before short runs of its kinds
#: are timed: two cores that others use, too, show no more in minutes.
VERIFIED_HALF_WIDTH = {"cpu": 0.04, "cuda": 0.02}
# Timing what may or may not reach a target tells hardly more of it than this: what lasts for a whole search is left.
_BORDERLINE_HALF_WIDTH = 0.028
# Short runs take at most this share of what verifying took so far, and this long a turn in any case.
_NARROWING_SHARE, _NARROWING_S = 0.2, 4.0


@dataclass(frozen=True)
class Winner:
    """A target's outcome.

    Attributes:
        choice: what was chosen, or the best reached and why that is not enough.
        measurement: of the chosen: its verification, or the search's of one that only comes nearest to a target;
            None when nothing was measured.
        rival: the unaccelerated pipeline with as few steps as are as fast as a winner; None when there is none.
    """

    choice: Choice
    measurement: Measurement | None
    rival: Measurement | None


@dataclass(frozen=True)
class Verification:
    """What verifying a cell showed.

    Attributes:
        winners: by accelerator, one per target in the targets' order; those of which nothing works are not in it.
        failed: what went wrong, a line per candidate.
        unfinished: accelerators of which others may yet win: there was no time to look further, or turns enough.
    """

    winners: Mapping[str, Sequence[Winner]]
    failed: tuple[str, ...]
    unfinished: frozenset[str] = frozenset()


def verify(bench: Workbench, cell: Cell, accelerators: Sequence[str], time_is_up: TimeIsUp) -> Verification:
    """Measure the winners of a cell's groups again, and choose again with what that shows.

    What is verified is stored at once and not verified twice. Of groups that an earlier run finished nothing that
    has won is exchanged, and nothing is timed: more blocks, those of other groups too, would always tell a little more.

    Args:
        bench: the search's workbench, whose store has the search's measurements.
        cell: the cell.
        accelerators: names of its groups, all of which have something that works.
        time_is_up: asked before anything is timed beyond one verification of each winner.

    Returns:
        The winners, and what failed in being verified.
    """
    open_ones = [group for name in accelerators if not (group := GroupSearch(bench, cell, name)).is_done]
    narrowing, verified, failed = _Narrowing(bench, cell), dict[str, Measurement](), list[str]()
    # Groups that an earlier run finished were looked at again when bounds barred those.
    seen = _barred(bench, cell, set(accelerators) - {group.accelerator for group in open_ones})
    if open_ones and not bench.settings.exhaustive and not time_is_up():
        ensure_calibrated(bench, cell)  # else nothing would tell what others promise
    turn, left = 0, dict[str, int]()
    while turn < _TURNS:
        chosen = _chosen(bench, cell, accelerators)
        missing = [candidate for key, candidate in chosen.items() if key not in verified]
        if turn and not missing:
            break
        verified |= _verified(bench, missing, failed)
        newly = _barred(bench, cell, accelerators) - seen
        # What a bound bars costs no turn: each time there is one candidate less.
        turn += not newly or time_is_up()
        seen |= newly
        if open_ones and not time_is_up():
            narrowing.go_on([candidate for key, candidate in chosen.items() if key in verified], open_ones)
            for group in open_ones:
                group.settle(time_is_up)
        # What was thought to reach a target may have turned out not to.
        again = {group.accelerator for group in open_ones if group.targets_left}
        left |= _looked_further(bench, cell, again | {name for name, _ in newly}, failed, time_is_up)
    working = verifiable(bench, cell, accelerators)
    found = _with_same_rivals({name: _winners(bench, cell, name, verified) for name in working})
    winners = {name: _left_open(own) if left.get(name) else own for name, own in found.items()}
    unfinished = {name for name, count in left.items() if count}
    unfinished |= {group.accelerator for group in open_ones if group.targets_left}
    return Verification(winners, tuple(failed), frozenset(unfinished))


def _barred(bench: Workbench, cell: Cell, accelerators: Iterable[str]) -> set[tuple[str, str]]:
    """Accelerators and keys of what bounds bar."""
    return {(name, key) for name in accelerators for key in bench.secondary.bars(cell, name)}


def _looked_further(
    bench: Workbench, cell: Cell, accelerators: Iterable[str], failed: list[str], time_is_up: TimeIsUp
) -> dict[str, int]:
    """Look for other winners of groups; how many candidates there was no time for."""
    left = {}
    for name in sorted(accelerators):
        explored = GroupSearch(bench, cell, name).look_further(time_is_up)
        failed += explored.failed
        left[name] = explored.left
    return left


def _left_open(winners: Sequence[Winner]) -> list[Winner]:
    """The winners; targets without one may be reached by what there was no time for."""
    return [
        winner if winner.choice.reason is None else replace(winner, choice=replace(winner.choice, reason="undecided"))
        for winner in winners
    ]


def verify_ahead(bench: Workbench, cell: Cell, accelerator: str) -> Verification:
    """Measure the winners of one group as it stands now, and what fewer steps lose: :func:`verify` then finds them.

    Returns:
        The winners as they are before those of the cell's other groups are verified, and what failed in being verified.
    """
    names, failed = verifiable(bench, cell, [accelerator]), list[str]()
    verified = _verified(bench, list(_chosen(bench, cell, names).values()), failed)
    working = verifiable(bench, cell, names)
    found = {name: _winners(bench, cell, name, verified) for name in working}
    return Verification(_with_same_rivals(found), tuple(failed))


def _chosen(bench: Workbench, cell: Cell, accelerators: Sequence[str]) -> dict[str, Candidate]:
    """The winners as they are now, and what may yet be one, by key; of equals, what is verified.

    What comes nearest to a target that is surely out of reach is not worth another measurement. In a group that is
    done, what has won wins on, as long as it reaches the target.
    """
    found, max_loss = list[Choice](), bench.settings.quality.max_loss
    for name in verifiable(bench, cell, accelerators):
        own, barred = options_of(bench, cell, name), bench.secondary.bars(cell, name)
        verified = {measurement.candidate.key for measurement in bench.known(cell).verified(cell, name)}
        wanted = [worth_verifying(own, verified, target, max_loss, barred) for target in TARGETS]
        if GroupSearch(bench, cell, name).is_done:
            known = verified | _kept(bench, cell, name)
            stay = [option for option in own if option.candidate.key in known]
            kept = [choose_within(stay, target, max_loss, barred) for target in TARGETS]
            wanted = [new if old.reason else old for old, new in zip(kept, wanted, strict=True)]
        found += wanted
    options = [choice.option for choice in found if choice.reason in (None, "undecided")]
    return {option.candidate.key: option.candidate for option in options if option is not None}


def _kept(bench: Workbench, cell: Cell, accelerator: str) -> set[str]:
    """Keys of what the last search chose in a group, also where its verification is gone."""
    won = bench.store.winners(
        cell, accelerator, bench.environment(cell).id, bench.sampling(cell, "search"), bench.since
    )
    entries = won.entries.values() if won else ()
    return {Candidate(cell, accelerator, entry.params).key for entry in entries if entry.status == "met"}


class _Narrowing:
    """Short runs of what may win if it surely reaches a target, and of winners whose speed-ups are vague."""

    def __init__(self, bench: Workbench, cell: Cell) -> None:
        self._bench = bench
        self._cell = cell
        self._began = time.monotonic()
        self._spent_s = 0.0

    def go_on(self, chosen: Sequence[Candidate], groups: Sequence[GroupSearch]) -> None:
        """Time them until they are known, or their share of the time is spent."""
        now = time.monotonic()
        left_s = _NARROWING_SHARE * (now - self._began - self._spent_s) - self._spent_s
        timer, goal = (
            Timer(self._bench, self._cell, self._bench.settings.decide_by),
            VERIFIED_HALF_WIDTH[_device(self._bench)],
        )

        def time_is_up() -> bool:
            return time.monotonic() - now >= max(_NARROWING_S, left_s)

        timer.narrow([candidate for group in groups for candidate in group.borderline], _is_decided, time_is_up)
        timer.narrow(chosen, lambda speedup: speedup.half_width_ratio <= goal, time_is_up)
        self._spent_s += time.monotonic() - now


def _device(bench: Workbench) -> str:
    return "cpu" if bench.settings.gpus is None else "cuda"


def _is_decided(speedup: Interval) -> bool:
    """Whether it is known which targets a speed-up reaches, or timing it further would hardly tell."""
    return not is_open(speedup) or speedup.half_width_ratio <= _BORDERLINE_HALF_WIDTH


def _winners(bench: Workbench, cell: Cell, accelerator: str, verified: Mapping[str, Measurement]) -> list[Winner]:
    """The final choices: where the best of all is not verified, the best of those that are."""
    options = options_of(bench, cell, accelerator)
    max_loss, barred = bench.settings.quality.max_loss, bench.secondary.bars(cell, accelerator)
    chosen = [final_choice(options, verified, target, max_loss, barred) for target in TARGETS]
    return [_winner(bench, cell, choice, verified) for choice in _open_to_others(bench, cell, accelerator, chosen)]


def _with_same_rivals(found: Mapping[str, Sequence[Winner]]) -> dict[str, list[Winner]]:
    """The winners: those that have a rival in common have it as it was drawn for all of them."""
    rivals = [winner.rival for own in found.values() for winner in own if winner.rival is not None]
    most = {one.candidate.key: one for one in sorted(rivals, key=lambda one: one.sampling.num_samples)}

    def alike(winner: Winner) -> Winner:
        return winner if winner.rival is None else replace(winner, rival=most[winner.rival.candidate.key])

    return {name: [alike(winner) for winner in own] for name, own in found.items()}


def _open_to_others(bench: Workbench, cell: Cell, accelerator: str, chosen: Sequence[Choice]) -> list[Choice]:
    """The choices: a target that nothing evaluated reaches, and something else may, is undecided.

    Of a coarse grid that is what any point of the whole space may reach; else what is still worth a try.
    """
    if all(choice.reason in (None, "undecided") for choice in chosen):
        return list(chosen)
    group = GroupSearch(bench, cell, accelerator)
    coarse = bench.settings.coarse
    targets = group.plan().targets_open_to(group.all_points) if coarse else group.targets_left
    return [
        replace(choice, reason="undecided") if choice.reason and choice.target in targets else choice
        for choice in chosen
    ]


def _winner(bench: Workbench, cell: Cell, choice: Choice, verified: Mapping[str, Measurement]) -> Winner:
    if choice.option is None:
        return Winner(choice, None, None)
    known, candidate = bench.known(cell), choice.option.candidate
    if choice.reason is not None:
        return Winner(choice, verified.get(candidate.key) or known.find(candidate), None)
    winner = verified[candidate.key]
    return Winner(choice, winner, rival(bench, cell, known.costs, choice.option.speedup.value, winner))


def _verified(bench: Workbench, candidates: Sequence[Candidate], failed: list[str]) -> dict[str, Measurement]:
    """The candidates' measurements on the winners' samples, found in the store or made together.

    Secondary metrics that one lacks are computed of its pictures; where these are gone, it is measured again.
    """
    verified, missing = {}, []
    for candidate in candidates:
        sampling = bench.sampling(candidate.cell, "winner")
        stored = bench.store.find(candidate.key, bench.environment(candidate.cell).id, sampling, bench.since)
        found = stored and bench.secondary.completed(stored)
        if found is None:
            missing.append(candidate)
        else:
            verified[candidate.key] = found
    for measurement in _measured(bench, missing, failed):
        bench.keep(measurement)  # also where a metric fails
        found = bench.secondary.completed(measurement)
        if found is not None:
            verified[measurement.candidate.key] = found
    return verified


def _measured(bench: Workbench, candidates: Sequence[Candidate], failed: list[str]) -> list[Measurement]:
    """Measurements of those that work; where something fails, halves are tried until what it is stands alone.

    One that worked on the search's prompts and fails now is a failure of its own, and no reason to lose the others.
    """
    if not candidates:
        return []
    try:
        return measure_together(bench, candidates)
    except Unavailable:
        raise
    except Exception as error:
        if len(candidates) == 1:
            explained = note_failure(bench, candidates[0], error)
            failed.append(f"{candidates[0].key}: {explained}")
            return []
        bench.pipelines.unload()
        if is_cuda_broken():
            raise CudaBroken(f"this process can use its GPU no more; later cases need another ({error})") from error
    middle = len(candidates) // 2
    return [
        measurement
        for part in (candidates[:middle], candidates[middle:])
        for measurement in _measured(bench, part, failed)
    ]
