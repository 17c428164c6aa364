"""What the search would record now: winners chosen from a store by the search's own functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_diffaccel.accelerators.composition import Registry
from pytest_diffaccel.matrix import TARGETS, Candidate
from pytest_diffaccel.measure.measurement import Block, Interval, Round
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.html.content.cells import CellRecord
from pytest_diffaccel.search.decide.select import Option
from pytest_diffaccel.search.models.cost_model import CostModel
from pytest_diffaccel.search.outcome import golden_entry
from pytest_diffaccel.search.verify.fewer_steps import steps_as_fast
from pytest_diffaccel.search.verify.verification import Winner, final_choice


@dataclass(frozen=True)
class Standing:
    """A cell as its search sees it.

    Attributes:
        speedups: of each measured candidate, from all blocks of its kinds of steps in the environment; by key.
        entries: what is chosen and verified so far; a target whose choice is not verified yet is not in it.
    """

    speedups: Mapping[str, Interval]
    entries: Mapping[GoldenKey, GoldenEntry]


def fit_costs(
    registry: Registry, records: Sequence[CellRecord], rounds: Mapping[str, Sequence[Round]]
) -> dict[str, CostModel]:
    """The cost model of each environment, by id, from all that was timed and that the registry knows the methods of.

    Args:
        registry: the methods known.
        records: of all cells.
        rounds: the environments' calibrations, by id.
    """
    timed: defaultdict[str, list[tuple[Candidate, Sequence[Block]]]] = defaultdict(list)
    for record in records:
        own = (*record.searched.values(), *record.verified.values())
        timed[record.environment] += [(one.candidate, one.blocks) for one in own if one.blocks]
    for environment, made in rounds.items():
        timed[environment] += [(one, (block,)) for each in made for one, block in each.blocks]
    known = {name: [pair for pair in own if _is_known(registry, pair[0])] for name, own in timed.items()}
    return {environment: CostModel.fit(registry, own) for environment, own in known.items() if own}


def _is_known(registry: Registry, candidate: Candidate) -> bool:
    """Whether the methods are registered here: a user's own are where their conftest is loaded."""
    return set(candidate.params) <= registry.method_names


def standing(record: CellRecord, costs: CostModel | None, max_loss: float) -> Standing:
    """How a cell stands.

    Args:
        record: what the store holds of it.
        costs: its environment's cost model; None where nothing was timed: then speed-ups are each measurement's own.
        max_loss: largest LPIPS that a winner may have.
    """
    speedups = {key: one.speedup for key, one in record.best_known.items()}
    if costs is None:
        return Standing(speedups, {})
    known = [one.candidate for one in record.best_known.values() if _is_known(costs.registry, one.candidate)]
    speedups |= {one.key: speedup for one, speedup in zip(known, costs.speedups(known), strict=True)}
    entries: dict[GoldenKey, GoldenEntry] = {}
    for accelerator, own in _groups(known, record).items():
        options = [Option(one, speedups[one.key], _losses(record, one)) for one in own]
        for target in TARGETS:
            entry = _entry(record, costs, options, target, max_loss)
            if entry is not None:
                cell = record.cell
                entries[GoldenKey(cell.pipe, cell.scheduler, cell.steps, accelerator, target)] = entry
    return Standing(speedups, entries)


def _groups(known: Sequence[Candidate], record: CellRecord) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = {}
    for one in sorted(known, key=lambda candidate: candidate.key):
        if one.key in record.searched:
            groups.setdefault(one.accelerator, []).append(one)
    return groups


def _losses(record: CellRecord, candidate: Candidate) -> tuple[float, ...]:
    return record.searched[candidate.key].quality.lpips_per_sample


def _entry(
    record: CellRecord, costs: CostModel, options: Sequence[Option], target: float, max_loss: float
) -> GoldenEntry | None:
    # Blocks of groups that came later move speed-ups, too: what was verified stands until it is searched again.
    choice = final_choice(options, record.verified, target, max_loss)
    if choice.option is None or choice.reason == "undecided" or record.described is None:
        return None
    key = choice.option.candidate.key
    if choice.reason is not None:
        return golden_entry(Winner(choice, record.best_known[key], None), record.described)
    steps = steps_as_fast(costs, record.cell.steps, choice.option.speedup.value)
    rival = next((one for one in record.rivals if one.candidate.cell.steps == steps), None)
    return golden_entry(Winner(choice, record.verified[key], rival), record.described)
