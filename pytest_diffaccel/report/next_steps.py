"""What a search is about to do, what it leaves open, and what to do next, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_diffaccel.accelerators.stack import EAGER
from pytest_diffaccel.matrix import spaced_params
from pytest_diffaccel.measure.prompts import used
from pytest_diffaccel.records.golden import GoldenEntry
from pytest_diffaccel.records.golden_file import Change
from pytest_diffaccel.records.golden_key import GoldenKey
from pytest_diffaccel.report.winners import interval_text
from pytest_diffaccel.search.results import Chosen
from pytest_diffaccel.settings.search_settings import Settings
from pytest_diffaccel.settings.work_folder import GOLDEN
from pytest_diffaccel.words import counted

if TYPE_CHECKING:
    from pytest_diffaccel.accelerators.registry import Registry

# By how much the GPU's own speed-up has to be the higher one to be spoken of.
_WORTH_A_WORD = 1.05
# Candidates that a bound kept from winning are named up to so many.
_NAMED = 5


def announcement(settings: Settings, cases: int) -> list[str]:
    """How much there is to do, by which rule, and how to ask for less, in a few lines.

    Args:
        settings: the search's settings.
        cases: how many there are.
    """
    when = "once the first cases are measured" if settings.exhaustive else "after a short calibration"
    lines = [
        f"{counted(cases, 'case')} in {counted(len(settings.cells), 'cell')}, models: {settings.models}; "
        f"the time left is shown {when}"
    ]
    if settings.prompts is not None:
        lines.append(used(settings.prompts, settings.num_samples))
    if not settings.quality.is_lpips:
        lines.append(f"{settings.quality.name} decides; {settings.quality.rule.too_bad} cannot win")
    if settings.by_mean:
        lines.append("DiffBench's rule decides: mean speedups, CLIP scores at most 5% lower")
    return [*lines, f"{_narrowing_text(settings)}Ctrl-C loses nothing, {settings.goes_on}"]


def finer_text(golden: Mapping[GoldenKey, GoldenEntry], settings: Settings, registry: Registry) -> list[str]:
    """That a coarse search is to replace winners of a finer one, in a line before it does; nothing where it is not.

    Args:
        golden: what the golden file holds.
        settings: the search's settings.
        registry: its accelerators.
    """
    if not (settings.coarse and settings.update_golden):
        return []
    grids = {
        (cell, one.name): one.grid(cell, coarse=True)
        for cell in settings.cells
        for one in registry.select(settings.accelerators)
    }
    finer = [
        key
        for key, entry in golden.items()
        if entry.status == "met" and entry.params not in grids.get((key.cell, key.accelerator), [entry.params])
    ]
    if not finer:
        return []
    return [
        f"{settings.golden} holds {counted(len(finer), 'winner')} of a finer search; with --update-golden this coarse "
        "one replaces them"
    ]


def _narrowing_text(settings: Settings) -> str:
    """The options that would ask for less, to begin a sentence; empty where the search asks for as little as it can."""
    cells = settings.cells
    wide = {
        "--pipe": len({cell.pipe for cell in cells}) > 1,
        "--sched": len({cell.scheduler for cell in cells}) > 1,
        "--steps": len({cell.steps for cell in cells}) > 1,
        "--search-targets": len(settings.accelerators) > 1,
        "--grid coarse": not settings.coarse,
    }
    options = " ".join(option for option, is_wide in wide.items() if is_wide)
    return f"narrow with {options}; " if options else ""


def undecided_text(
    undecided: Mapping[GoldenKey, Chosen], left: Collection[str], settings: Settings, going_on: Collection[str] = ()
) -> list[str]:
    """Targets of which it is not known well enough whether a candidate reaches them, and what came nearest.

    Args:
        undecided: what came nearest, by key.
        left: names of the groups of which a budget left candidates out; all else has been measured to its end.
        settings: the search's settings.
        going_on: names of the groups that a further session goes on with, as others promise what these do not reach.
    """
    ordered = sorted(undecided.items(), key=lambda pair: pair[0].prompt_order)
    unfinished = [(key, choice) for key, choice in ordered if group_of(key) in left]
    finished = [(key, choice) for key, choice in ordered if group_of(key) not in left]
    of_bounds = [(key, choice) for key, choice in finished if choice.barred]
    others = [(key, choice) for key, choice in finished if not choice.barred]
    of_others = [(key, choice) for key, choice in others if group_of(key) in going_on]
    of_grid = [(key, choice) for key, choice in others if group_of(key) not in going_on and not choice.may_reach]
    of_speed = [(key, choice) for key, choice in others if group_of(key) not in going_on and choice.may_reach]
    no_more = "the same command measures no more of {}; "
    other_points = "leave out --grid coarse for other points; " if settings.coarse else ""
    lines = []
    for nearest, why in (
        (unfinished, f"the time was up, {settings.goes_on}"),
        (of_others, f"others promise to reach {{}}, {settings.goes_on}"),
        (of_grid, "points that the coarse grid leaves out may reach {}: leave out --grid coarse"),
        (of_speed, f"{no_more}{other_points}with --fresh it measures anew, best on a quieter machine"),
        (of_bounds, f"{no_more}more pictures (--num-samples) make intervals of changes narrower"),
    ):
        one = len(nearest) == 1
        stay = "a winner that golden has stays" if one else "winners that golden has stay"
        said = f"undecided: {counted(len(nearest), 'target')}; {stay}; {why.format('it' if one else 'them')}"
        lines += ["", said, *_nearest_lines(nearest)] if nearest else []
    return lines


def _nearest_lines(nearest: Sequence[tuple[GoldenKey, Chosen]]) -> list[str]:
    """A line for all targets of a group that the same candidate comes nearest to."""
    by_text: dict[tuple[str, str], list[str]] = {}
    for key, choice in nearest:
        speedup = choice.speedup
        what = (
            f"{interval_text(speedup.value, (speedup.low, speedup.high), 2, 'x')}, {choice.loss_text}, "
            f"{spaced_params(choice.params)}" + (f"; {choice.barred}" if choice.barred else "")
        )
        group = f"{key.cell.in_words}, {key.accelerator}"
        by_text.setdefault((group, what), []).append(f"{key.target:g}x")
    return [f"  {group}, {', '.join(targets)}: {what}" for (group, what), targets in by_text.items()]


def group_of(key: GoldenKey) -> str:
    """The group that a golden key belongs to, as cases' results name it."""
    return f"{key.cell} {key.accelerator}"


def left_out(left: Mapping[str, int], settings: Settings) -> list[str]:
    """What a search whose time was up did not try.

    Args:
        left: candidates that were still promising, by group.
        settings: the search's settings.
    """
    number = sum(left.values())
    were = counted(number, "promising candidate was", "promising candidates were")
    return _by_group(
        f"search budget: {were} not tried; {settings.goes_on}",
        {group: f"{count} left, targets without a winner are undecided" for group, count in left.items()},
    )


def unfit_text(unfit: Mapping[str, str]) -> list[str]:
    """Groups of which the model can take no candidate: they have no records, and nothing went wrong.

    Args:
        unfit: why not, by group.
    """
    return _by_group(f"left out: {counted(len(unfit), 'group does', 'groups do')} not fit the model", unfit)


def unrecorded_text(unrecorded: Mapping[str, str]) -> list[str]:
    """Groups whose winners were asked for and have no record: the run must not look as if all were done.

    Args:
        unrecorded: why not, by group.
    """
    groups = counted(len(unrecorded), "group")
    return _by_group(
        f"not recorded: the winners of {groups}; measure what is missing and run their cases again", unrecorded
    )


def barred_text(barred: Mapping[str, str]) -> list[str]:
    """Candidates that a bound on another metric kept from winning.

    Args:
        barred: which bound, and by how much, by candidate key.
    """
    named = dict(list(barred.items())[:_NAMED])
    lines = _by_group(f"bounds: {counted(len(barred), 'candidate')} that lost little cannot win within them", named)
    return lines + ([f"  and {len(barred) - _NAMED} more"] if len(barred) > _NAMED else [])


def _by_group(heading: str, said: Mapping[str, str]) -> list[str]:
    """A heading and a line per group; nothing without groups."""
    return ["", heading, *(f"  {group}: {text}" for group, text in said.items())] if said else []


def stopped_text(ended: int, cases: int, recorded: int, settings: Settings) -> str:
    """What is kept of a search that was stopped, and how it goes on, in a line.

    Args:
        ended: cases that had ended.
        cases: of the whole session.
        recorded: golden records that it wrote.
        settings: the search's settings.
    """
    if not ended:
        return f"diffaccel: stopped before the first of {counted(cases, 'case')} ended; {settings.goes_on}"
    written = f" and {counted(recorded, 'golden record')} written" if recorded else ""
    return (
        f"diffaccel: stopped after {ended} of {counted(cases, 'case')}: what they measured is stored{written}, only "
        f"the case under way is lost; {settings.goes_on}"
    )


def next_steps(
    settings: Settings,
    changes: Sequence[Change],
    *,
    failed: int,
    launch_bound: Mapping[str, int],
    entries: Mapping[GoldenKey, GoldenEntry],
) -> list[str]:
    """What the user can do now, and should know.

    Args:
        settings: the search's settings.
        changes: to the golden database.
        failed: number of failed cases.
        launch_bound: number of winners whose steps wait for what launches them, by accelerator.
        entries: winners and unattainable targets.
    """
    lines = []
    if any(change.kind == "differs" for change in changes):
        lines.append("next: golden records differ and were kept; --update-golden writes the new ones")
    if entries and settings.golden != GOLDEN:
        guarded = "" if settings.stack == EAGER else f"; guard them on their stack: --gate --stack {settings.stack}"
        lines.append(
            f"next: name this file where winners are shown, used or guarded: --golden {settings.golden}{guarded}"
        )
    if failed:
        lines.append(f"next: {counted(failed, 'case')} failed; run them again with --lf")
    if settings.coarse:
        lines.append("next: leave out --grid coarse for all grid points; what is measured is not measured again")
    if settings.models == "embedded":
        lines.append(
            "note: embedded pipelines are small stand-ins; search your own weights with --models hub or a TOML file"
        )
    # A CPU computes and launches by itself: nothing waits for anything there.
    if launch_bound and settings.gpus is not None:
        names = ", ".join(f"{name} ({count})" for name, count in launch_bound.items())
        lines.append(
            f"note: launch-bound winners: {names}; in their steps the GPU waits for a CPU core, so their speed-ups "
            "change with that core's speed and with what else uses it; larger batches (--batch-size) leave less of that"
        )
    if settings.gpus is not None:
        lines += _without_waiting(entries)
    return lines


def _without_waiting(entries: Mapping[GoldenKey, GoldenEntry]) -> list[str]:
    """What the winner that waits most for its host would gain without that, in a sentence; none where it is little."""
    by_gain = {
        entry.device_speedup / entry.speedup: (key, entry)
        for key, entry in entries.items()
        if entry.status == "met" and entry.speedup and entry.device_speedup is not None
    }
    gain = max(by_gain, default=0.0)
    if gain < _WORTH_A_WORD:
        return []
    key, entry = by_gain[gain]
    return [
        f"note: a pipeline that waits for no launches (torch.compile, CUDA graphs) gains up to the GPU's own speed-up: "
        f"{entry.device_speedup:.2f}x instead of {entry.speedup:.2f}x by {key.accelerator} for {key.target:g}x"
    ]
